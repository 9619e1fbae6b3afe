"""The template as a whole: it is valid, complete, and says what the design says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schemahub import backfill_plan, backfill_task
from tests.deploy.conftest import ROOT

# Rules of cfn-lint that are off, each with the reason.
IGNORED_RULES = {
    "W1020": "the SAM translator fills the stage into layer names, and leaves an Fn::Sub without variables",
}


def of_type(resources: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: r["Properties"] for name, r in resources.items() if r["Type"] == kind}


def test_cfn_lint_finds_nothing_in_the_translated_template(translated: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "translated.json"
    file.write_text(json.dumps(translated, indent=1))
    command = [
        str(Path(sys.executable).with_name("cfn-lint")),
        "--regions",
        "us-east-1",
        "--ignore-checks",
        *IGNORED_RULES,
        "--",
        str(file),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_sections_follow_the_data(template: dict[str, Any]) -> None:
    order = [
        "Bucket",
        "LocksTable",
        "StreamsTable",
        "ThrottleTable",
        "CoreLayer",
        "OpenRunFunction",
        "LockFunction",
        "PlanStreamFunction",
        "FetchChunkFunction",
        "CommitSegmentsFunction",
        "CloseRunFunction",
        "OpenBackfillFunction",
        "PlanBackfillFunction",
        "CommitBackfillFunction",
        "CloseBackfillFunction",
        "ListPendingFunction",
        "TransformBatchFunction",
        "PublishFunction",
        "MaintainFunction",
        "ProbeExchangeFunction",
        "ReleaseOnFailureFunction",
        "BackfillCluster",
        "BackfillTask",
        "TransformStateMachine",
        "IngestStateMachine",
        "BackfillStateMachine",
        "MaintainStateMachine",
        "Database",
        "Workgroup",
        "AlarmTopic",
    ]
    names = list(template["Resources"])
    assert [name for name in names if name in order] == order


def test_the_bucket_is_closed_versioned_and_encrypted(resources: dict[str, Any]) -> None:
    bucket = resources["Bucket"]["Properties"]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    assert bucket["VersioningConfiguration"]["Status"] == "Enabled"
    rule = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"][0]
    assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
    assert rule["BucketKeyEnabled"] is True


def test_the_bucket_refuses_clear_text_old_tls_and_overwriting_raw(resources: dict[str, Any]) -> None:
    statements = {s["Sid"]: s for s in resources["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]}
    assert {s["Effect"] for s in statements.values()} == {"Deny"}
    assert statements["DenyClearText"]["Condition"] == {
        "Bool": {"aws:SecureTransport": "false"},
        "NotIpAddress": {"aws:SourceIp": "127.0.0.0/8"},
    }
    assert statements["DenyOldTls"]["Condition"] == {"NumericLessThan": {"s3:TlsVersion": 1.2}}
    assert statements["DenyOverwriteOfRaw"]["Condition"]["Null"] == {"s3:if-none-match": "true"}


def test_no_lifecycle_rule_ever_expires_originals_or_the_table(resources: dict[str, Any]) -> None:
    rules = resources["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    expiring = {rule["Prefix"] for rule in rules if "ExpirationInDays" in rule}
    assert expiring == {"schemahub/plans/", "schemahub/athena/"}
    assert any("AbortIncompleteMultipartUpload" in rule for rule in rules)


def test_tables_are_on_demand_recoverable_and_encrypted(resources: dict[str, Any]) -> None:
    tables = of_type(resources, "AWS::DynamoDB::Table")
    assert set(tables) == {"LocksTable", "StreamsTable", "ThrottleTable"}
    for table in tables.values():
        assert table["BillingMode"] == "PAY_PER_REQUEST"
        assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert table["SSESpecification"] == {"SSEEnabled": True}
        assert table["DeletionProtectionEnabled"] == {"Fn::If": ["IsProd", True, False]}


def test_time_to_live_is_only_on_locks(resources: dict[str, Any]) -> None:
    tables = of_type(resources, "AWS::DynamoDB::Table")
    assert [n for n, t in tables.items() if "TimeToLiveSpecification" in t] == ["LocksTable"]
    assert tables["LocksTable"]["TimeToLiveSpecification"] == {"AttributeName": "expires", "Enabled": True}


def test_the_index_of_pending_segments_is_sparse(resources: dict[str, Any]) -> None:
    [index] = resources["StreamsTable"]["Properties"]["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "pending"
    assert [key["AttributeName"] for key in index["KeySchema"]] == ["pending", "pending_key"]


def test_every_function_is_arm64_traced_and_bounded(resources: dict[str, Any]) -> None:
    functions = of_type(resources, "AWS::Lambda::Function")
    assert len(functions) == 16
    for name, function in functions.items():
        assert function["Runtime"] == "python3.13", name
        assert function["Architectures"] == ["arm64"], name
        assert function["TracingConfig"] == {"Mode": "Active"}, name
        assert 0 < function["Timeout"] <= 900, name
        assert function["Layers"][0]["Ref"].startswith("CoreLayer"), name


def test_every_function_has_a_folder_and_every_folder_a_function(template: dict[str, Any]) -> None:
    named = {
        r["Properties"]["CodeUri"] for r in template["Resources"].values() if r["Type"] == "AWS::Serverless::Function"
    }
    folders = {f"functions/{path.parent.name}" for path in ROOT.glob("functions/*/app.py")}
    assert named == folders - {"functions/backfill"}  # an image


def test_every_function_has_a_log_group_with_the_retention_parameter(resources: dict[str, Any]) -> None:
    groups = of_type(resources, "AWS::Logs::LogGroup")
    for name, function in of_type(resources, "AWS::Lambda::Function").items():
        group = groups[function["LoggingConfig"]["LogGroup"]["Ref"]]
        assert group["LogGroupName"]["Fn::Sub"] == "/aws/lambda/" + function["FunctionName"]["Fn::Sub"], name
    assert all(group["RetentionInDays"] == {"Ref": "LogRetentionDays"} for group in groups.values())
    assert len(groups) == 21


def test_the_environment_is_what_the_code_reads(resources: dict[str, Any]) -> None:
    """Each SCHEMAHUB_ name of the core is in the template, and the other way round."""
    code = "\n".join(
        path.read_text() for folder in ("layers/core/schemahub", "functions") for path in (ROOT / folder).rglob("*.py")
    )
    read = set(re.findall(r'"SCHEMAHUB_([A-Z_]+)"', code)) | set(
        re.findall(r'(?:text|number|whole)\("([A-Z_]+)"', code)
    )
    given = {
        name.removeprefix("SCHEMAHUB_")
        for f in of_type(resources, "AWS::Lambda::Function").values()
        for name in f["Environment"]["Variables"]
        if name.startswith("SCHEMAHUB_")
    }
    task = {name.removeprefix("SCHEMAHUB_") for name in task_environment(resources) if name.startswith("SCHEMAHUB_")}
    # MAPPINGS is for whoever tries a mapping file of their own, TASK comes with each task.
    assert read - {"MAPPINGS", "TASK"} == given | task
    assert task - {"WORK_DIR"} <= given


def task_environment(resources: dict[str, Any]) -> dict[str, Any]:
    [container] = resources["BackfillTask"]["Properties"]["ContainerDefinitions"]
    return {e["Name"]: e["Value"] for e in container["Environment"]}


def test_a_task_has_the_settings_that_the_functions_have(resources: dict[str, Any]) -> None:
    function = of_type(resources, "AWS::Lambda::Function")["FetchChunkFunction"]["Environment"]["Variables"]
    for name, value in task_environment(resources).items():
        assert name == "SCHEMAHUB_WORK_DIR" or value == function[name], name


def test_the_task_runs_without_rights_on_a_read_only_root_and_stops_in_time(resources: dict[str, Any]) -> None:
    task = resources["BackfillTask"]["Properties"]
    [container] = task["ContainerDefinitions"]
    assert task["RequiresCompatibilities"] == ["FARGATE"]
    assert task["RuntimePlatform"]["CpuArchitecture"] == "ARM64"
    assert container["User"] == "10001:10001"
    assert container["ReadonlyRootFilesystem"] is True
    assert container["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
    writable = [m["ContainerPath"] for m in container["MountPoints"] if not m["ReadOnly"]]
    assert writable == [task_environment(resources)["SCHEMAHUB_WORK_DIR"]]
    assert container["StopTimeout"] > backfill_task.STOP_S + 8


def test_the_image_is_the_same_core_with_locked_packages_and_no_rights() -> None:
    lines = (ROOT / "functions/backfill/Dockerfile").read_text().splitlines()
    copied = {
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    }
    assert {path.partition("*")[0].rstrip("/") for path in copied} == {
        "functions/backfill/requirements.lock",
        "layers/core/schemahub",
        "mappings",
        "functions/backfill/app.py",
    }
    assert "USER 10001:10001" in lines
    assert any("--require-hashes" in line for line in lines)
    pins = [
        set(re.findall(r"^([a-z0-9_.-]+==\S+)", (ROOT / name / "requirements.lock").read_text(), re.MULTILINE))
        for name in ("layers/core", "functions/backfill")
    ]
    assert pins[0] < pins[1]
    assert {pin.partition("==")[0] for pin in pins[1] - pins[0]} >= {"boto3", "botocore"}


def test_nothing_comes_in_to_a_task_and_only_https_goes_out(resources: dict[str, Any]) -> None:
    group = resources["BackfillSecurityGroup"]
    assert group["Condition"] == "HasBackfillSubnets"
    assert "SecurityGroupIngress" not in group["Properties"]
    [rule] = group["Properties"]["SecurityGroupEgress"]
    assert (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == ("tcp", 443, 443)


def test_presets_are_those_of_the_code(template: dict[str, Any]) -> None:
    given = template["Mappings"]["BackfillPresets"]
    assert {name: (int(p["Workers"]), int(p["Chunks"])) for name, p in given.items()} == backfill_plan.PRESETS
    assert set(given) == set(template["Parameters"]["BackfillPreset"]["AllowedValues"])


@pytest.mark.parametrize(
    ("parameter", "mapping"), [("BackfillCpu", "BackfillCpus"), ("BackfillMemory", "BackfillMemories")]
)
def test_sizes_of_a_task_are_the_same_in_both_units(template: dict[str, Any], parameter: str, mapping: str) -> None:
    sizes = {int(key): float(*entry.values()) for key, entry in template["Mappings"][mapping].items()}
    assert sizes == {size: size / 1024 for size in template["Parameters"][parameter]["AllowedValues"]}


def test_state_machines_log_errors_without_data_and_are_traced(resources: dict[str, Any]) -> None:
    for name, machine in of_type(resources, "AWS::StepFunctions::StateMachine").items():
        assert machine["StateMachineType"] == "STANDARD", name
        assert machine["LoggingConfiguration"]["Level"] == "ERROR", name
        assert machine["LoggingConfiguration"]["IncludeExecutionData"] is False, name
        assert machine["TracingConfiguration"] == {"Enabled": True}, name


def test_saved_queries_can_be_left_out(template: dict[str, Any], resources: dict[str, Any]) -> None:
    queries = {n: r for n, r in resources.items() if r["Type"] == "AWS::Athena::NamedQuery"}
    assert set(queries) == {"OhlcvQuery", "CompletenessQuery", "LastTradesQuery", "VwapQuery"}
    assert all(query["Condition"] == "DeploySavedQueries" for query in queries.values())
    assert template["Parameters"]["SavedQueries"]["Default"] == "true"


def test_the_workgroup_binds_its_users(resources: dict[str, Any]) -> None:
    configuration = resources["Workgroup"]["Properties"]["WorkGroupConfiguration"]
    assert configuration["EnforceWorkGroupConfiguration"] is True
    assert configuration["BytesScannedCutoffPerQuery"] == {"Ref": "QueryScanLimitBytes"}
    assert configuration["ResultConfiguration"]["EncryptionConfiguration"]


def test_the_rule_hears_every_bad_end_of_all_machines(resources: dict[str, Any]) -> None:
    rule = resources["ExecutionFailedRule"]["Properties"]
    assert rule["EventPattern"]["detail"]["status"] == ["FAILED", "TIMED_OUT", "ABORTED"]
    machines = [arn["Ref"] for arn in rule["EventPattern"]["detail"]["stateMachineArn"]]
    names = ["IngestStateMachine", "TransformStateMachine", "BackfillStateMachine", "MaintainStateMachine"]
    assert machines == names
    assert rule["Targets"][0]["Arn"]["Fn::GetAtt"][0] == "ReleaseOnFailureFunction"


def test_all_machines_have_an_alarm_that_reaches_the_topic(resources: dict[str, Any]) -> None:
    alarms = of_type(resources, "AWS::CloudWatch::Alarm").values()
    failed = [alarm for alarm in alarms if alarm["MetricName"] == "ExecutionsFailed"]
    assert {alarm["Dimensions"][0]["Value"]["Ref"] for alarm in failed} == {
        "IngestStateMachine",
        "TransformStateMachine",
        "BackfillStateMachine",
        "MaintainStateMachine",
    }
    assert all(a["AlarmActions"] == [{"Ref": "AlarmTopic"}] for a in alarms)


def test_what_needs_a_look_has_an_alarm_on_the_metric_that_the_code_counts(resources: dict[str, Any]) -> None:
    alarm = of_type(resources, "AWS::CloudWatch::Alarm")["NeedsALookAlarm"]
    assert f'count("{alarm["MetricName"]}")' in (ROOT / "layers/core/schemahub/deps.py").read_text()
    given = of_type(resources, "AWS::Lambda::Function")["PlanStreamFunction"]["Environment"]["Variables"]
    assert alarm["Namespace"] == given["POWERTOOLS_METRICS_NAMESPACE"]
    assert alarm["Dimensions"] == [{"Name": "service", "Value": given["POWERTOOLS_SERVICE_NAME"]}]


def test_outputs_are_those_that_the_command_line_reads(template: dict[str, Any]) -> None:
    assert set(template["Outputs"]) == {
        "BucketName",
        "LocksTableName",
        "StreamsTableName",
        "ThrottleTableName",
        "IngestStateMachineArn",
        "TransformStateMachineArn",
        "BackfillStateMachineArn",
        "MaintainStateMachineArn",
        "BackfillClusterName",
        "BackfillRepositoryUri",
        "GlueDatabaseName",
        "AthenaWorkgroupName",
        "MissedStartsQueueUrl",
        "AlarmTopicArn",
    }
