# How a layer is built. SAM copies a layer's folder to a scratch directory and runs its Makefile there, so every layer
# holds a link to this file (and core one to the repository's mappings/): SAM's copy follows links.
#
#   SCHEMAHUB_LAYER_TARGET=lambda   (default) wheels for Lambda: CPython 3.13, arm64, Amazon Linux 2023
#   SCHEMAHUB_LAYER_TARGET=local    wheels for this machine and the python3 on PATH: the embedded AWS runs handlers with
#                                   its own interpreter, whatever the template's Runtime says
#
# Build the two into different directories: SAM's cache does not know of the variable.

TARGET := $(or $(SCHEMAHUB_LAYER_TARGET),lambda)
SITE = $(ARTIFACTS_DIR)/python
UV := $(shell command -v uv || echo python3 -m uv)

ifeq ($(TARGET),lambda)
  PLATFORM := --python-version 3.13 --python-platform aarch64-manylinux_2_28
  # A .pyc is only good for the minor version that wrote it.
  COMPILER := $(shell python3.13 -c 'import sys; print(sys.executable)' 2>/dev/null \
                      || $(UV) python find --no-python-downloads 3.13 2>/dev/null)
else ifeq ($(TARGET),local)
  COMPILER := $(shell python3 -c 'import sys; print(sys.executable)')
  PLATFORM := --python $(COMPILER)
else
  $(error SCHEMAHUB_LAYER_TARGET is "$(TARGET)": it must be lambda or local)
endif

# --no-deps: a lock names all that the layer holds, and leaves out what the runtime or another layer brings.
define install
	$(UV) pip install --quiet --no-deps --require-hashes --only-binary :all: $(PLATFORM) \
		--target "$(SITE)" --requirement requirements.lock
	rm -rf "$(SITE)/bin" "$(SITE)/.lock"
	find "$(SITE)" -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
	find "$(SITE)" -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.pyi' -o -name '*.h' \) -delete
endef

# unchecked-hash: Lambda's copy is read-only, and its file times are not those of the build.
define compile
	find "$(SITE)" -type d -name __pycache__ -prune -exec rm -rf {} +
	@if [ -n "$(COMPILER)" ]; then \
		"$(COMPILER)" -m compileall -q -j 0 --invalidation-mode unchecked-hash "$(SITE)" >/dev/null; \
	else \
		echo "NOTE: no python3.13 here, so this layer has no bytecode: it works, but each cold start of a Lambda" \
			"compiles what it imports (about 0.5 s more). For a release, build where python3.13 is on PATH." >&2; \
	fi
endef

# make -C layers/<name> lock: resolve again, with the versions that the project's own lock has.
.PHONY: lock
lock:
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--constraint ../../requirements.lock $(addprefix --no-emit-package ,$(PROVIDED)) \
		requirements.in --output-file requirements.lock
