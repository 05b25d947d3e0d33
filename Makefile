# Builds the core (build/libsegzero.so) and the host program (./segzero), and runs what is built.
#
#   make            build              make test       set-up, build, all tests
#   make run        set-up, build, the RefCOCOg recipe      make help       everything else
#
# Products of a plain build are build/ and ./segzero; with SANITIZER=x everything is under build/x/. Compiler flags
# live in build/flags, the list of objects in build/objects: a change in either rebuilds what depends on it.
# The CUDA backend is a library of its own, build/libsegzero_cuda.so, made where nvcc is (CUDA=0: not). Tests run its kernels
# compiled for the processor, build/libsegzero_cuda_emulated.so, so they need neither.

VERSION   := 0.1.0
PREFIX    ?= /usr/local
DESTDIR   ?=
ARCH      ?= native
SANITIZER ?=
WERROR    ?=
V         ?=
ARGS      ?=
CUDA      ?= 1
CUDA_ARCH ?= 80 89 90
SCRIPT_RUN      := recipes/refcocog_grpo.lua
SCRIPT_PRETRAIN := recipes/pretrain_shapes.lua
SCRIPT_BENCH    := tests/bench/bench.lua
SCRIPT_BENCH_SAM2 := tests/bench/bench_sam2.lua
SCRIPT_BENCH_STEP := tests/bench/bench_step.lua

ifneq ($(filter-out address undefined thread,$(SANITIZER)),)
$(error SANITIZER=$(SANITIZER): expected address, undefined or thread)
endif

.SUFFIXES:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
# All cores unless -j was given. `make clean all` must clean first, so a goal that removes files takes turns.
ifneq ($(filter clean install uninstall,$(MAKECMDGOALS)),)
.NOTPARALLEL:
else ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)
endif

B    := build$(if $(SANITIZER),/$(SANITIZER))
HOST := $(if $(SANITIZER),$(B)/segzero,segzero)
LIB  := $(B)/libsegzero.so
CUDA_LIB      := $(B)/libsegzero_cuda.so
CUDA_EMULATED := $(B)/libsegzero_cuda_emulated.so

# ---- flags ------------------------------------------------------------------------------------------------------
# Values that pkg-config gives are empty before the first set-up; test and run therefore start a second make after it.
LUAJIT_CFLAGS := $(shell pkg-config --cflags luajit 2>/dev/null)
LUAJIT_LIBS   := $(shell pkg-config --libs luajit 2>/dev/null)

# GCC prefers 256-bit vectors even where 512-bit ones are there; exp over a cached array: 0.72 against 0.61 ns an element,
# silu 1.36 against 0.57.
WIDE := $(if $(filter x86_64,$(shell uname -m)),-mprefer-vector-width=512)
OPT := -O3 -march=$(ARCH) $(WIDE)
ifeq ($(SANITIZER),address)
OPT := -O1 -march=$(ARCH) -fno-omit-frame-pointer -fsanitize=address
else ifeq ($(SANITIZER),undefined)
OPT := -O1 -march=$(ARCH) -fno-omit-frame-pointer -fsanitize=undefined -fno-sanitize-recover=undefined
else ifeq ($(SANITIZER),thread)
OPT := -O1 -march=$(ARCH) -fno-omit-frame-pointer -fsanitize=thread
# TSan cannot see how gcc's libgomp hands memory from thread to thread, so every parallel region would be a report.
# clang's libomp tells it, through the Archer tool.
ifeq ($(origin CC),default)
CC := clang
endif
OMP_TOOL_LIBRARIES := $(wildcard $(shell cc=$$(command -v $(CC)) && cc=$$(readlink -f "$$cc") && \
                        echo "$${cc%/*}/../lib/libarcher.so"))
ifeq ($(OMP_TOOL_LIBRARIES),)
$(error SANITIZER=thread needs clang and its OpenMP: apt-get install clang libomp-dev)
endif
export OMP_TOOL_LIBRARIES
endif
# No -ffast-math, ever: isnan and -inf masks must work.
CFLAGS_ALL := -std=gnu11 -g $(OPT) -fno-math-errno -fno-trapping-math -Wall -Wextra -Wshadow \
              $(if $(filter 1,$(WERROR)),-Werror) -DSZ_VERSION='"$(VERSION)"' -Iruntime -Imodels $(CFLAGS)
CFLAGS_LIB  := $(CFLAGS_ALL) -fPIC -fvisibility=hidden -fopenmp
CFLAGS_HOST := $(CFLAGS_ALL) $(LUAJIT_CFLAGS)
LIBS_LIB    := -fopenmp -ldnnl -lpcre2-8 -lutf8proc -lwebp -lpthread -lm
LIBS_HOST   := $(LUAJIT_LIBS) -ldl -lpthread
LINK_FLAGS  := $(filter -fsanitize% -fno-sanitize%,$(OPT)) $(LDFLAGS)
# A kernel that is named in a table but not written is an error here, not at run time. The sanitizers' own symbols come
# from the host program, so there it cannot be asked for.
SHARED_FLAGS := -shared $(if $(SANITIZER),,-Wl,-z,defs)

# ---- CUDA -------------------------------------------------------------------------------------------------------
# Machine code for each of CUDA_ARCH and PTX of the last, which a newer device's driver translates; compressed, less than half of it. A
# sanitizer cannot look into either library: device code is not instrumented, and the emulator switches stacks.
NVCC := $(if $(filter 1,$(CUDA)),$(if $(SANITIZER),,$(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc))))
CUDA_FLAGS := -std=c++17 -O3 -DNDEBUG $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$a,code=sm_$a) \
              -gencode arch=compute_$(lastword $(CUDA_ARCH)),code=compute_$(lastword $(CUDA_ARCH)) \
              -Xfatbin -compress-all -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wno-unknown-pragmas $(if $(filter 1,$(WERROR)),-Werror all-warnings -Xcompiler -Werror) -Iruntime
CUDA_LIBS  := -lcublasLt -ldl
EMULATOR   := $(if $(SANITIZER),,$(shell command -v $(firstword $(CXX)) 2>/dev/null))
EMULATED_FLAGS := -x c++ -std=gnu++17 -O1 -g -fPIC -fvisibility=hidden -fno-math-errno -Wall -Wextra -Wshadow -Wno-unknown-pragmas \
                  $(if $(filter 1,$(WERROR)),-Werror) -DSZ_EMULATE -Iruntime -Itests/cuda_emulator

# -march=native means another thing on another machine, so a tree that moves must rebuild.
CPU_NAME := $(if $(filter native,$(ARCH)),$(shell sed -n '/^\(model name\|CPU part\)/{s/.*: //p;q;}' /proc/cpuinfo 2>/dev/null))

# ---- sources ----------------------------------------------------------------------------------------------------
SRC_LIB   := $(sort $(wildcard $(addsuffix /*.c,runtime/core runtime/ops runtime/cpu runtime/cpu/reference \
               runtime/io runtime/sampling models models/common models/qwen_vl models/sam2)))
OBJ_LIB   := $(SRC_LIB:%.c=$(B)/obj/%.o)
SRC_HOST  := runtime/main.c $(sort $(wildcard runtime/host/*.c))
OBJ_HOST  := $(SRC_HOST:%.c=$(B)/obj/%.o)
SRC_CUDA  := $(sort $(wildcard runtime/cuda/*.cu))
OBJ_CUDA  := $(SRC_CUDA:%.cu=$(B)/obj/%.cuda.o)
OBJ_EMULATOR := $(B)/obj/tests/cuda_emulator/emulate.o $(B)/obj/tests/cuda_emulator/emulate_cudnn.o
OBJ_EMULATED := $(SRC_CUDA:%.cu=$(B)/obj/%.emulated.o) $(OBJ_EMULATOR)

quiet = $(if $(filter 1,$(V)),,@echo "$(1)";)

.PHONY: bundle cuda-emulated all setup test run bench pretrain suite do-run do-bench do-pretrain install uninstall docs clean help FORCE
.DEFAULT_GOAL := all

all: $(LIB) $(HOST) $(if $(NVCC),$(CUDA_LIB))
cuda-emulated: $(CUDA_EMULATED)

$(LIB): $(OBJ_LIB) $(B)/objects
	$(call quiet,  link  $@)$(CC) $(SHARED_FLAGS) $(LINK_FLAGS) -o $@ $(OBJ_LIB) $(LIBS_LIB)

$(HOST): $(OBJ_HOST)
	$(call quiet,  link  $@)$(CC) $(LINK_FLAGS) -o $@ $(OBJ_HOST) $(LIBS_HOST)

$(OBJ_HOST): $(B)/obj/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(call quiet,  cc    $<)$(CC) $(CFLAGS_HOST) -MMD -MP -c -o $@ $<

$(OBJ_LIB): $(B)/obj/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(call quiet,  cc    $<)$(CC) $(CFLAGS_LIB) -MMD -MP -c -o $@ $<

$(CUDA_LIB): $(OBJ_CUDA) $(B)/cuda_objects
	$(call quiet,  link  $@)$(NVCC) -shared -cudart static -Xlinker -z,defs -Xlinker '-rpath=$$ORIGIN' -o $@ $(OBJ_CUDA) $(CUDA_LIBS)

$(OBJ_CUDA): $(B)/obj/%.cuda.o: %.cu $(B)/cuda_flags
	@mkdir -p $(@D)
	$(call quiet,  nvcc  $<)$(NVCC) $(CUDA_FLAGS) -MMD -MP -c -o $@ $<

$(CUDA_EMULATED): $(OBJ_EMULATED) $(B)/cuda_objects
	$(call quiet,  link  $@)$(CXX) -shared -Wl,-z,defs -o $@ $(OBJ_EMULATED)

$(B)/obj/%.emulated.o: %.cu $(B)/emulated_flags
	@mkdir -p $(@D)
	$(call quiet,  c++   $<)$(CXX) $(EMULATED_FLAGS) -MMD -MP -c -o $@ $<

$(OBJ_EMULATOR): $(B)/obj/%.o: %.cc $(B)/emulated_flags
	@mkdir -p $(@D)
	$(call quiet,  c++   $<)$(CXX) $(EMULATED_FLAGS) -MMD -MP -c -o $@ $<

# The emulator's own test: a program of its parts without the rest of the backend.
$(B)/tests/cuda_emulate: tests/cuda_emulator/cuda_emulate.cc runtime/cuda/device.cu tests/cuda_emulator/emulate.cc $(B)/obj/runtime/cuda/device.emulated.o $(B)/obj/tests/cuda_emulator/emulate.o
	@mkdir -p $(@D)
	$(call quiet,  c++   $<)$(CXX) $(EMULATED_FLAGS) -o $@ $< -x none $(B)/obj/runtime/cuda/device.emulated.o $(B)/obj/tests/cuda_emulator/emulate.o

# Attention and sampling against the reference kernels, of which it takes single objects: both sides define sz_fail.
CUDA_ATTENTION := $(addprefix $(B)/obj/runtime/,$(addsuffix .emulated.o,$(addprefix cuda/,attention attention_backward attention_keys attention_cached sample device)) \
                  cpu/reference/attention.o sampling/sample.o core/random.o) $(B)/obj/tests/cuda_emulator/emulate.o
$(B)/tests/cuda_attention: tests/cuda_emulator/cuda_attention.cc $(CUDA_ATTENTION)
	@mkdir -p $(@D)
	$(call quiet,  c++   $<)$(CXX) $(EMULATED_FLAGS) -fopenmp -o $@ $< -x none $(CUDA_ATTENTION)

# What cuDNN would run, which it says without a device; seconds to compile, unlike the library.
$(B)/tests/cudnn_plans: tests/cuda_emulator/cudnn_plans.cc runtime/cuda/cudnn.cu runtime/cuda/cudnn.cuh runtime/cuda/cuda.cuh runtime/core/core.h $(B)/cuda_flags
	@mkdir -p $(@D)
	$(call quiet,  nvcc  $<)$(NVCC) -std=c++17 -O1 -x cu -Xcompiler -Wall,-Wno-unknown-pragmas $(if $(filter 1,$(WERROR)),-Werror all-warnings) -Iruntime -o $@ $< -ldl

-include $(OBJ_CUDA:.o=.d) $(OBJ_EMULATED:.o=.d)
-include $(OBJ_LIB:.o=.d) $(OBJ_HOST:.o=.d)

# A stamp is rewritten only when its text changed. The flags stamp changes on the first build, so it is also the place
# that checks for missing packages and says what was found.
define FLAGS_TEXT
$(CC) $(CFLAGS_LIB) | $(CFLAGS_HOST) | $(SHARED_FLAGS) $(LINK_FLAGS) $(LIBS_LIB) $(LIBS_HOST) | $(CPU_NAME)
endef
export FLAGS_TEXT
define OBJECTS_TEXT
$(OBJ_LIB)
endef
export OBJECTS_TEXT

$(B)/flags: FORCE
	@mkdir -p $(@D); printf '%s\n' "$$FLAGS_TEXT" | cmp -s - $@ || { \
	  CC="$(CC)" sh runtime/setup.sh --check && CC="$(CC)" sh runtime/setup.sh --versions && \
	  printf '%s\n' "$$FLAGS_TEXT" > $@; }

define CUDA_TEXT
$(NVCC) $(CUDA_FLAGS) | $(CUDA_LIBS)
endef
export CUDA_TEXT
define EMULATED_TEXT
$(EMULATOR) $(EMULATED_FLAGS)
endef
export EMULATED_TEXT

$(B)/cuda_flags: FORCE
	@mkdir -p $(@D); printf '%s\n' "$$CUDA_TEXT" | cmp -s - $@ || printf '%s\n' "$$CUDA_TEXT" > $@

$(B)/emulated_flags: FORCE
	@mkdir -p $(@D); printf '%s\n' "$$EMULATED_TEXT" | cmp -s - $@ || printf '%s\n' "$$EMULATED_TEXT" > $@

$(B)/cuda_objects: FORCE
	@mkdir -p $(@D); printf '%s\n' '$(SRC_CUDA)' | cmp -s - $@ || printf '%s\n' '$(SRC_CUDA)' > $@

$(B)/objects: FORCE
	@mkdir -p $(@D); printf '%s\n' "$$OBJECTS_TEXT" | cmp -s - $@ || printf '%s\n' "$$OBJECTS_TEXT" > $@

FORCE:

# ---- set-up, then a fresh make that sees what the set-up installed --------------------------------------------------
setup:
	@CC="$(CC)" sh runtime/setup.sh

test: setup
	@$(MAKE) suite
run: setup
	@$(MAKE) do-run
bench: setup
	@$(MAKE) do-bench
pretrain: setup
	@$(MAKE) do-pretrain

# LuaJIT keeps pointers to C memory in an allocator of its own, which the leak checker does not scan: every live handle
# would count as a leak, and so would oneDNN's caches and OpenMP's thread pool. Everything else of ASan stays on.
# TSan looks for races in our own code only: oneDNN and LuaJIT are not instrumented.
export ASAN_OPTIONS  ?= detect_leaks=0
export UBSAN_OPTIONS ?= print_stacktrace=1
export TSAN_OPTIONS  ?= ignore_noninstrumented_modules=1

# The tests need no CUDA library, which takes minutes to compile: `make` does it.
suite: $(LIB) $(HOST) $(if $(EMULATOR),$(CUDA_EMULATED) $(B)/tests/cuda_emulate $(B)/tests/cuda_attention) $(if $(NVCC),$(B)/tests/cudnn_plans)
	@$(RUNNER) ./$(HOST) tests/run.lua

# These compute on the CPU and need no CUDA library.
do-run: $(LIB) $(HOST)
	@./$(HOST) $(SCRIPT_RUN) $(ARGS)
do-bench: $(LIB) $(HOST)
	@./$(HOST) $(SCRIPT_BENCH) $(if $(SEGZERO_BENCH_MODEL),dtype=bf16 only=prefill,$(if $(PYTHON),python=$(PYTHON))) $(ARGS)
	@for d in bf16 int8; do ./$(HOST) $(SCRIPT_BENCH) model=tests/bench/bench_wide.json dtype=$$d only=prefill || exit 1; done
	@./$(HOST) $(SCRIPT_BENCH_SAM2) $(if $(PYTHON),python=$(PYTHON))
	$(if $(SEGZERO_BENCH_MODEL),$(if $(PYTHON),@$(PYTHON) tests/bench/bench_peers.py $(SEGZERO_BENCH_MODEL)))
	@echo "not run, it takes minutes: a whole GRPO step, ./$(HOST) $(SCRIPT_BENCH_STEP)"
	@echo "a model of real size: ./$(HOST) examples/random_checkpoint.lua size=3b out=DIR, then SEGZERO_BENCH_MODEL=DIR make bench; with PYTHON= beside"
	@echo "transformers and llama.cpp (tests/bench/bench_peers.py: pairs of short runs)"
do-pretrain: $(LIB) $(HOST)
	@./$(HOST) $(SCRIPT_PRETRAIN) $(ARGS)

# ---- install ----------------------------------------------------------------------------------------------------
# bin/segzero finds ../lib/segzero/libsegzero.so and ../share/segzero relative to itself, so the folder can be moved.
SHARE := $(DESTDIR)$(PREFIX)/share/segzero

install: all
	@mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/segzero $(SHARE)
	@install -m 755 $(HOST) $(DESTDIR)$(PREFIX)/bin/segzero
	@install -m 755 $(LIB) $(DESTDIR)$(PREFIX)/lib/segzero/libsegzero.so
	@if [ -f $(CUDA_LIB) ]; then install -m 755 $(CUDA_LIB) $(DESTDIR)$(PREFIX)/lib/segzero/libsegzero_cuda.so; fi
	@for f in $$(find lua rewards recipes examples models/tiny runtime/sz.h runtime/ops/ops.def models/*.h models/*/*.h -type f 2>/dev/null); do \
	  mkdir -p "$(SHARE)/$${f%/*}" && install -m 644 "$$f" "$(SHARE)/$$f" || exit 1; done
	@echo "installed under $(DESTDIR)$(PREFIX): bin/segzero, lib/segzero, share/segzero"

uninstall:
	@rm -f $(DESTDIR)$(PREFIX)/bin/segzero
	@rm -rf $(DESTDIR)$(PREFIX)/lib/segzero $(SHARE)
	@echo "removed from $(DESTDIR)$(PREFIX): bin/segzero, lib/segzero, share/segzero"

# For a machine that has CUDA and nothing else: built for no processor in particular, apart from build/, and the libraries it needs.
bundle:
	@$(MAKE) B=build/portable HOST=build/portable/segzero ARCH=x86-64-v3 all
	@BUILT=build/portable sh tests/gpu_check.sh bundle

# Pages that are made from the code.
docs: $(LIB) $(HOST)
	@./$(HOST) lua/segzero/tools/settings_doc.lua

clean:
	@rm -rf build segzero

help:
	@echo "make                 build ./segzero and build/libsegzero.so"
	@echo "make setup           install the packages that are missing (apt-get), or say which command does"
	@echo "make test            set-up, build, all tests; FILTER=text runs the files whose name has it, SEED=n sets the seed"
	@echo "make run             set-up, build, segzero $(SCRIPT_RUN); ARGS='key=value ...' overrides its settings"
	@echo "make bench           set-up, build, segzero $(SCRIPT_BENCH) and $(SCRIPT_BENCH_SAM2); PYTHON= one with torch, transformers, sam2 beside"
	@echo "                     a whole GRPO step takes minutes and is run by hand: $(SCRIPT_BENCH_STEP), bench_step.py"
	@echo "make pretrain        set-up, build, segzero $(SCRIPT_PRETRAIN)"
	@echo "make docs            write docs/settings.md from the schemas of settings"
	@echo "make install         into PREFIX=$(PREFIX) (DESTDIR is put before it); make uninstall removes it"
	@echo "make clean           remove build/ and ./segzero"
	@echo "make bundle          build/bundle: all that tests/gpu_check.sh needs on a machine with nothing but CUDA; CUDA_ARCH=90 narrows it"
	@echo "make cuda-emulated   the CUDA kernels compiled for the processor: $(CUDA_EMULATED)"
	@echo "options: CUDA=0 (no CUDA backend)  CUDA_ARCH='$(CUDA_ARCH)' (NVCC here: $(or $(NVCC),none))"
	@echo "         CC=  CFLAGS=  ARCH=$(ARCH)  WERROR=1  V=1 (whole commands)  SANITIZER=address|undefined|thread"
	@echo "         (a sanitizer builds into build/NAME, with a segzero there)"
