#!/bin/sh
# Builds the image of the backfill task and pushes it to the repository of a deployed stack (`make push-image`).
# Needs docker, the AWS CLI, and rights to read the stack and to push to its repository.
set -eu
stack=$1 tag=$2

for tool in aws docker; do
    command -v "$tool" >/dev/null || { echo "push-image needs $tool on the PATH" >&2; exit 1; }
done

repository=$(aws cloudformation describe-stacks --stack-name "$stack" --output text \
    --query "Stacks[0].Outputs[?OutputKey=='BackfillRepositoryUri'].OutputValue")
case $repository in
    *.dkr.ecr.*.amazonaws.com*/*) ;;
    *) echo "the stack $stack has no output BackfillRepositoryUri: is it a SchemaHub stack?" >&2; exit 1 ;;
esac
registry=${repository%%/*}
region=${registry#*.dkr.ecr.} region=${region%%.*}

# Not in a pipe from aws: its failure would be the pipe's success. Not as an argument: those are public.
password=$(aws ecr get-login-password --region "$region")
printf '%s' "$password" | docker login --username AWS --password-stdin "$registry"

docker build --platform linux/arm64 -f functions/backfill/Dockerfile -t "$repository:$tag" .
docker push "$repository:$tag"
