# Builds the core (build/libsegzero.so) and the host program (./segzero), and runs what is built.
#
#   make            build              make test       set-up, build, all tests
#   make run        set-up, build, the RefCOCOg recipe      make help       everything else
#   make aarch64-check    build for aarch64, run the ops and the embedded model in an emulator
#
# A plain build makes build/ and ./segzero; with SANITIZER=x everything is under build/x/. The
# compiler flags are stored in build/flags and the list of objects in build/objects: a change in
# either rebuilds what depends on it. The CUDA backend is a library of its own,
# build/libsegzero_cuda.so. It is built if nvcc is found, unless CUDA=0. So is what several ranks talk
# over, build/libsegzero_mpi.so, where Open MPI is, unless MPI=0. The tests run the CUDA kernels
# compiled for the CPU, build/libsegzero_cuda_emulated.so, so they need neither nvcc nor a GPU.

VERSION   := 0.1.0
PREFIX    ?= /usr/local
DESTDIR   ?=
ARCH      ?=
MACHINE   ?= $(shell uname -m)
SANITIZER ?=
WERROR    ?=
V         ?=
ARGS      ?=
OBJCOPY   ?= objcopy
CUDA      ?= 1
MPI       ?= 1
CUDA_ARCH ?= 80 89 90
SCRIPT_RUN      := recipes/refcocog_grpo.lua
SCRIPT_PRETRAIN := recipes/pretrain_shapes.lua
SCRIPT_BENCH    := tests/bench/bench.lua
SCRIPT_BENCH_SAM2 := tests/bench/bench_sam2.lua
SCRIPT_BENCH_STEP := tests/bench/bench_step.lua

ifneq ($(filter-out address undefined thread fuzz,$(SANITIZER)),)
$(error SANITIZER=$(SANITIZER): expected address, undefined, thread or fuzz)
endif

.SUFFIXES:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
# All cores, unless -j was given. `make clean all` must clean first, so goals that remove files run
# serially.
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
AMX_EMULATED  := build/amx_emulated$(SANITIZER:%=_%)
MPI_LIB       := $(B)/libsegzero_mpi.so

# ---- flags ---------------------------------------------------------------------------------------
# pkg-config finds nothing before the first set-up, so `test` and `run` start a second make after
# it.
LUAJIT_CFLAGS := $(shell pkg-config --cflags luajit 2>/dev/null)
LUAJIT_LIBS   := $(shell pkg-config --libs luajit 2>/dev/null)

# The program runs on every processor of its architecture: the CPU kernels (runtime/cpu) are compiled
# for several kinds of x86-64 processors, and the best one is picked at the start. ARCH=x compiles
# everything for one processor instead (gcc's -march); sanitizers do that too, to compile once.
ONE_ARCH := $(or $(ARCH),$(if $(SANITIZER),native))
KINDS    := $(if $(ONE_ARCH),native,$(if $(filter x86_64,$(MACHINE)),baseline avx2 avx512 amx,native))
# Of these only the products with 8 and 4-bit weights differ from the kind before the underscore.
KINDS_INT8 := $(if $(filter avx512,$(KINDS)),avx2_vnni avx512_vnni)

# GCC prefers 256-bit vectors even on CPUs with 512-bit ones. Nanoseconds per element of a cached
# array with 256 and 512 bits: exp 0.72 and 0.61, silu 1.36 and 0.57.
WIDE := $(if $(filter x86_64,$(MACHINE)),-mprefer-vector-width=512)
FLAGS_baseline    :=
FLAGS_avx2        := -march=x86-64-v3 -mtune=generic
FLAGS_avx512      := -march=x86-64-v4 -mtune=generic $(WIDE)
FLAGS_avx2_vnni   := $(FLAGS_avx2) -mavxvnni -DSZ_CPU_INT8_ONLY
FLAGS_avx512_vnni := $(FLAGS_avx512) -mavx512vnni -DSZ_CPU_INT8_ONLY
FLAGS_amx         := $(FLAGS_avx512) -mavx512vnni -mamx-tile -mamx-bf16 -mamx-int8 -DSZ_AMX
ifneq ($(ONE_ARCH),)
MARCH := -march=$(ONE_ARCH) $(WIDE) -DSZ_ONE_KIND='"$(ONE_ARCH)"'
else ifeq ($(KINDS),native)
MARCH := -DSZ_ONE_KIND='"$(if $(filter aarch64,$(MACHINE)),neon,baseline)"'
endif

OPT := -O3 $(MARCH)
ifeq ($(SANITIZER),address)
# One build holds both checkers, so that the suite runs once for the two.
OPT := -O1 $(MARCH) -fno-omit-frame-pointer \
       -fsanitize=address,undefined -fno-sanitize-recover=undefined
else ifeq ($(SANITIZER),undefined)
OPT := -O1 $(MARCH) -fno-omit-frame-pointer \
       -fsanitize=undefined -fno-sanitize-recover=undefined
else ifeq ($(SANITIZER),fuzz)
# For libFuzzer's targets (tests/fuzz), which are linked with the objects and not with the library.
OPT := -O1 $(MARCH) -fno-omit-frame-pointer \
       -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
ifeq ($(origin CC),default)
CC := clang
endif
else ifeq ($(SANITIZER),thread)
OPT := -O1 $(MARCH) -fno-omit-frame-pointer -fsanitize=thread
# ThreadSanitizer cannot see how gcc's libgomp passes memory between threads, so it would report
# every parallel region. clang's libomp tells it, through the Archer tool.
ifeq ($(origin CC),default)
CC := clang
endif
OMP_TOOL_LIBRARIES := $(wildcard $(shell cc=$$(command -v $(CC)) && \
                        cc=$$(readlink -f "$$cc") && echo "$${cc%/*}/../lib/libarcher.so"))
ifeq ($(OMP_TOOL_LIBRARIES),)
$(error SANITIZER=thread needs clang and its OpenMP: apt-get install clang libomp-dev)
endif
export OMP_TOOL_LIBRARIES
endif
# Never -ffast-math: isnan and masks of -inf must work.
CFLAGS_ALL := -std=gnu11 -g $(OPT) -fno-math-errno -fno-trapping-math -Wall -Wextra -Wshadow \
              $(if $(filter 1,$(WERROR)),-Werror) -DSZ_VERSION='"$(VERSION)"' \
              -Iruntime -Imodels $(CFLAGS)
CFLAGS_LIB  := $(CFLAGS_ALL) -fPIC -fvisibility=hidden -fopenmp
CFLAGS_HOST := $(CFLAGS_ALL) $(LUAJIT_CFLAGS)
LIBS_LIB    := -fopenmp -ldnnl -lpcre2-8 -lutf8proc -ljpeg -lpng16 -lz -lwebp -lwebpdemux \
               -lsnappy -llz4 -lzstd -lbrotlidec -lpthread -ldl -lm
LIBS_HOST   := $(LUAJIT_LIBS) -ldl -lpthread
comma := ,
# runtime/host/threads.c and exits.c replace these for every library.
EXPORT_HOST := $(if $(SANITIZER),,$(addprefix -Wl$(comma)--export-dynamic-symbol=,pthread_create _exit _Exit))
LINK_FLAGS  := $(filter -fsanitize% -fno-sanitize%,$(OPT)) $(LDFLAGS)
# A kernel that a table names but nobody wrote is a link error. Sanitizers take their own symbols
# from the host program, so their builds cannot ask for this.
SHARED_FLAGS := -shared $(if $(SANITIZER),,-Wl,-z,defs)

# ---- CUDA ----------------------------------------------------------------------------------------
# Machine code for each architecture of CUDA_ARCH, and PTX for the last one, which the driver of a
# newer GPU translates. Compression more than halves the library. A sanitizer cannot check either
# CUDA library: device code is not instrumented, and the emulator switches stacks.
FOUND_NVCC := $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc))
NVCC := $(if $(filter 1,$(CUDA)),$(if $(SANITIZER),,$(FOUND_NVCC)))
LAST_ARCH  := $(lastword $(CUDA_ARCH))
CUDA_FLAGS := -std=c++17 -O3 -DNDEBUG \
              $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$a,code=sm_$a) \
              -gencode arch=compute_$(LAST_ARCH),code=compute_$(LAST_ARCH) \
              -Xfatbin -compress-all \
              -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wno-unknown-pragmas \
              $(if $(filter 1,$(WERROR)),-Werror all-warnings -Xcompiler -Werror) -Iruntime
CUDA_LIBS  := -lcublasLt -ldl
EMULATOR   := $(if $(SANITIZER),,$(shell command -v $(firstword $(CXX)) 2>/dev/null))
EMULATED_FLAGS := -x c++ -std=gnu++17 -O1 -g -fPIC -fvisibility=hidden -fno-math-errno \
                  -Wall -Wextra -Wshadow -Wno-unknown-pragmas \
                  $(if $(filter 1,$(WERROR)),-Werror) -DSZ_EMULATE -Iruntime -Itests/cuda_emulator

# ---- MPI -----------------------------------------------------------------------------------------
# The transport between ranks, a library of its own that is built where Open MPI is, unless MPI=0.
MPI_CFLAGS := $(if $(filter 1,$(MPI)),$(shell pkg-config --cflags ompi-c 2>/dev/null))
MPI_LIBS   := $(if $(filter 1,$(MPI)),$(shell pkg-config --libs ompi-c 2>/dev/null))

# A build with -march=native depends on the machine: a tree that is moved to another must be rebuilt.
CPU_LINE := /^\(model name\|CPU part\)/{s/.*: //p;q;}
CPU_NAME := $(if $(filter native,$(ONE_ARCH)),$(shell sed -n '$(CPU_LINE)' /proc/cpuinfo 2>/dev/null))

# ---- sources -------------------------------------------------------------------------------------
# A new family of models is a folder in models/; its sources are found.
SRC_LIB   := $(sort $(wildcard $(addsuffix /*.c,runtime/core runtime/ops \
               runtime/cpu/reference runtime/io runtime/io/image runtime/io/parquet \
               runtime/net runtime/sampling models models/*)) \
               $(addprefix runtime/comm/,comm.c elements.c parts.c shards.c columns.c nccl.c launch.c tcp.c tcp_join.c))
OBJ_CORE  := $(SRC_LIB:%.c=$(B)/obj/%.o)
SRC_CPU   := $(sort $(wildcard runtime/cpu/*.c))
SRC_INT8  := $(addprefix runtime/cpu/,int8.c int4.c int4_weights.c kernels.c)
OBJ_CPU   := $(foreach k,$(KINDS),$(SRC_CPU:%.c=$(B)/obj/$k/%.o)) \
             $(foreach k,$(KINDS_INT8),$(SRC_INT8:%.c=$(B)/obj/$k/%.o))
# With several kinds, the objects of each are joined into one.
OBJ_LIB   := $(OBJ_CORE) $(if $(filter native,$(KINDS)),$(OBJ_CPU),\
             $(foreach k,$(KINDS) $(KINDS_INT8),$(B)/obj/kernels_$k.o))
SRC_HOST  := runtime/main.c $(sort $(wildcard runtime/host/*.c))
OBJ_HOST  := $(SRC_HOST:%.c=$(B)/obj/%.o)
SRC_CUDA  := $(sort $(wildcard runtime/cuda/*.cu))
OBJ_CUDA  := $(SRC_CUDA:%.cu=$(B)/obj/%.cuda.o)
OBJ_EMULATOR := $(addprefix $(B)/obj/tests/cuda_emulator/,emulate.o streams.o threads.o \
                  emulate_cudnn.o emulate_nccl.o)
OBJ_EMULATED := $(SRC_CUDA:%.cu=$(B)/obj/%.emulated.o) $(OBJ_EMULATOR)

quiet = $(if $(filter 1,$(V)),,@echo "$(1)";)

.PHONY: all setup test suite lint format run do-run bench do-bench pretrain do-pretrain
.PHONY: aarch64 aarch64-check fuzz fuzz-targets cuda-emulated amx-emulated bundle install uninstall docs clean help FORCE
.DEFAULT_GOAL := all

all: $(LIB) $(HOST) $(if $(NVCC),$(CUDA_LIB)) $(if $(MPI_LIBS),$(MPI_LIB))
cuda-emulated: $(CUDA_EMULATED)
amx-emulated: $(AMX_EMULATED)/segzero $(AMX_EMULATED)/libsegzero.so $(B)/tests/amx_emulate

$(LIB): $(OBJ_LIB) $(B)/objects
	$(call quiet,  link  $@)$(CC) $(SHARED_FLAGS) $(LINK_FLAGS) -o $@ $(OBJ_LIB) $(LIBS_LIB)

$(MPI_LIB): runtime/comm/mpi.c runtime/comm/transport.h $(B)/flags
	$(call quiet,  link  $@)$(CC) $(CFLAGS_ALL) $(MPI_CFLAGS) -fPIC -fvisibility=hidden -shared \
	  $(LINK_FLAGS) -o $@ $< $(MPI_LIBS)

# The program reads the launcher's variables too.
LAUNCH := $(B)/obj/runtime/comm/launch.o
$(HOST): $(OBJ_HOST) $(LAUNCH)
	$(call quiet,  link  $@)$(CC) $(LINK_FLAGS) $(EXPORT_HOST) -o $@ $(OBJ_HOST) $(LAUNCH) $(LIBS_HOST)

$(OBJ_HOST): $(B)/obj/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(call quiet,  cc    $<)$(CC) $(CFLAGS_HOST) -MMD -MP -c -o $@ $<

$(OBJ_CORE): $(B)/obj/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(call quiet,  cc    $<)$(CC) $(CFLAGS_LIB) -MMD -MP -c -o $@ $<

define KIND_RULES
$(B)/obj/$1/%.o: %.c $(B)/flags
	@mkdir -p $$(@D)
	$$(call quiet,  cc    $$< ($1))$$(CC) $$(CFLAGS_LIB) $$(FLAGS_$1) -DSZ_CPU_KIND=$1 -MMD -MP -c -o $$@ $$<

$(B)/obj/kernels_$1.o: $(2:%.c=$(B)/obj/$1/%.o)
	$$(call quiet,  join  $$@)$$(LD) -r -o $$@.all $$^ && \
	  $$(OBJCOPY) --keep-global-symbol=sz_cpu_kernels_$1 $$@.all $$@ && rm -f $$@.all
endef
$(foreach k,$(KINDS),$(eval $(call KIND_RULES,$k,$(SRC_CPU))))
$(foreach k,$(KINDS_INT8),$(eval $(call KIND_RULES,$k,$(SRC_INT8))))

# The program with the kernels for AMX, whose instructions are emulated with AVX-512. At a
# sanitizer's -O1 alone GCC does not fuse a product and a sum (FMA), so that vectors would have other
# bits than intrinsics, and a row other bits alone than among 12.
FLAGS_amx_emulated := $(FLAGS_avx512) -mavx512vnni -fexpensive-optimizations -DSZ_AMX \
                      -include tests/amx_emulator/amx_emulator.h
OBJ_AMX_EMULATED := $(SRC_CPU:%.c=$(B)/obj/amx_emulated/%.o) \
                    $(B)/obj/amx_emulated/runtime/core/processor.o
$(OBJ_AMX_EMULATED): $(B)/obj/amx_emulated/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(call quiet,  cc    $< (amx_emulated))$(CC) $(filter-out -DSZ_ONE_KIND=%,$(CFLAGS_LIB)) \
	  $(FLAGS_amx_emulated) -DSZ_ONE_KIND='"amx"' -DSZ_CPU_KIND=native -MMD -MP -c -o $@ $<

$(AMX_EMULATED)/libsegzero.so: $(OBJ_CORE) $(OBJ_AMX_EMULATED) $(B)/objects
	@mkdir -p $(@D)
	$(call quiet,  link  $@)$(CC) $(SHARED_FLAGS) $(LINK_FLAGS) -o $@ \
	  $(filter-out %/obj/runtime/core/processor.o,$(OBJ_CORE)) $(OBJ_AMX_EMULATED) $(LIBS_LIB)

$(AMX_EMULATED)/segzero: $(HOST)
	@mkdir -p $(@D)
	$(call quiet,  copy  $@)cp $< $@

$(B)/tests/amx_emulate: tests/amx_emulator/amx_emulate.c tests/amx_emulator/amx_emulator.h $(B)/flags
	@mkdir -p $(@D)
	$(call quiet,  cc    $<)$(CC) $(CFLAGS_ALL) $(FLAGS_avx512) $(LINK_FLAGS) -o $@ $<

$(CUDA_LIB): $(OBJ_CUDA) $(B)/cuda_objects
	$(call quiet,  link  $@)$(NVCC) -shared -cudart static -Xlinker -z,defs \
	  -Xlinker '-rpath=$$ORIGIN' -o $@ $(OBJ_CUDA) $(CUDA_LIBS)

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

# The emulator's own test, with only the parts of the backend that it needs.
EMULATE_PARTS := $(addprefix $(B)/obj/runtime/cuda/,$(addsuffix .emulated.o,device nccl stage)) \
                 $(addprefix $(B)/obj/tests/cuda_emulator/,emulate.o streams.o threads.o \
                 emulate_nccl.o)
$(B)/tests/cuda_emulate: tests/cuda_emulator/cuda_emulate.cc $(EMULATE_PARTS)
	@mkdir -p $(@D)
	$(call quiet,  c++   $<)$(CXX) $(EMULATED_FLAGS) -o $@ $< -x none $(EMULATE_PARTS)

# Attention and sampling against the reference kernels. It links single objects of both sides,
# because the whole libraries both define sz_fail.
CUDA_ATTENTION := $(addprefix $(B)/obj/runtime/,$(addsuffix .emulated.o,\
                  $(addprefix cuda/,attention attention_backward attention_keys \
                  attention_cached sample device nccl stage)) \
                  cpu/reference/attention.o core/random.o) \
                  $(B)/obj/$(firstword $(KINDS))/runtime/cpu/sample.o \
                  $(addprefix $(B)/obj/tests/cuda_emulator/,emulate.o streams.o threads.o \
                  emulate_nccl.o)
$(B)/tests/cuda_attention: tests/cuda_emulator/cuda_attention.cc $(CUDA_ATTENTION)
	@mkdir -p $(@D)
	$(call quiet,  c++   $<)$(CXX) $(EMULATED_FLAGS) -fopenmp -o $@ $< -x none $(CUDA_ATTENTION)

# Which kernels cuDNN would run: it says so without a GPU. This compiles in seconds, unlike the
# library.
CUDNN_PLANS_PARTS := runtime/cuda/cudnn.cu runtime/cuda/cudnn.cuh runtime/cuda/cuda.cuh \
                     runtime/core/core.h
$(B)/tests/cudnn_plans: tests/cuda_emulator/cudnn_plans.cc $(CUDNN_PLANS_PARTS) $(B)/cuda_flags
	@mkdir -p $(@D)
	$(call quiet,  nvcc  $<)$(NVCC) -std=c++17 -O1 -x cu -Xcompiler -Wall,-Wno-unknown-pragmas \
	  $(if $(filter 1,$(WERROR)),-Werror all-warnings) -Iruntime -o $@ $< -ldl

# Makes the n-th allocation, write or rename of a test fail; it is preloaded.
$(B)/tests/faults.so: tests/support/faults.c $(B)/flags
	@mkdir -p $(@D)
	$(call quiet,  cc    $<)$(CC) $(CFLAGS_ALL) -fPIC -shared -o $@ $< -ldl

-include $(OBJ_CUDA:.o=.d) $(OBJ_EMULATED:.o=.d)
-include $(OBJ_CORE:.o=.d) $(OBJ_CPU:.o=.d) $(OBJ_HOST:.o=.d) $(OBJ_AMX_EMULATED:.o=.d)

# ---- stamps --------------------------------------------------------------------------------------
# Files that hold flags and lists of objects, rewritten only when their text changed. build/flags
# changes on the first build, so its rule also checks for missing packages and says what was found.
define FLAGS_TEXT
$(CC) $(CFLAGS_LIB) | $(foreach k,$(KINDS) $(KINDS_INT8) amx_emulated,$(FLAGS_$k) |) $(CFLAGS_HOST) | $(SHARED_FLAGS) $(LINK_FLAGS) | $(LIBS_LIB) $(LIBS_HOST)
$(CPU_NAME)
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
	@mkdir -p $(@D)
	@printf '%s\n' "$$CUDA_TEXT" | cmp -s - $@ || printf '%s\n' "$$CUDA_TEXT" > $@

$(B)/emulated_flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' "$$EMULATED_TEXT" | cmp -s - $@ || printf '%s\n' "$$EMULATED_TEXT" > $@

$(B)/cuda_objects: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(SRC_CUDA)' | cmp -s - $@ || printf '%s\n' '$(SRC_CUDA)' > $@

$(B)/objects: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' "$$OBJECTS_TEXT" | cmp -s - $@ || printf '%s\n' "$$OBJECTS_TEXT" > $@

FORCE:

# ---- set-up, then a second make that finds what the set-up installed -----------------------------
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

# LuaJIT keeps pointers to C memory in its own allocator, which the leak checker does not scan:
# every live handle would count as a leak, and so would oneDNN's caches and OpenMP's thread pool.
# AddressSanitizer's other checks stay on. ThreadSanitizer looks for races in our own code only:
# oneDNN and LuaJIT are not instrumented.
export ASAN_OPTIONS  ?= detect_leaks=0
export UBSAN_OPTIONS ?= print_stacktrace=1
export TSAN_OPTIONS  ?= ignore_noninstrumented_modules=1

# The tests do not need the CUDA library, which takes minutes to compile. RUNNER goes before the
# command, for example RUNNER='setarch -R', which ThreadSanitizer needs on some kernels.
suite: $(LIB) $(HOST) $(if $(MPI_LIBS),$(MPI_LIB)) $(B)/tests/faults.so $(if $(NVCC),$(B)/tests/cudnn_plans)
suite: $(if $(filter x86_64,$(MACHINE)),$(if $(filter thread,$(SANITIZER)),,amx-emulated))
suite: $(if $(EMULATOR),$(CUDA_EMULATED) $(B)/tests/cuda_emulate $(B)/tests/cuda_attention)
	@$(RUNNER) ./$(HOST) tests/run.lua

# ---- fuzzing -------------------------------------------------------------------------------------
# One program for each tests/fuzz/fuzz_NAME.c, built by clang. `make fuzz` runs the corpus of each
# and then TIME seconds of new inputs (0: the corpus alone), and the mutator of what Lua reads.
FUZZ_NAMES := $(patsubst tests/fuzz/fuzz_%.c,%,$(sort $(wildcard tests/fuzz/fuzz_*.c)))
TIME ?= 60
FUZZ_CC ?= clang

fuzz: $(LIB) $(HOST)
	@$(MAKE) SANITIZER=fuzz CC='$(FUZZ_CC)' fuzz-targets
	@TIME=$(TIME) sh tests/fuzz/run.sh $(FUZZ_NAMES)

fuzz-targets: $(FUZZ_NAMES:%=$(B)/fuzz_%)

$(B)/fuzz_%: tests/fuzz/fuzz_%.c tests/fuzz/fuzz.h $(OBJ_LIB)
	$(call quiet,  link  $@)$(CC) $(CFLAGS_ALL) -fsanitize=fuzzer,address,undefined -fopenmp -o $@ $< \
	  $(OBJ_LIB) $(LIBS_LIB)

# ---- aarch64 ------------------------------------------------------------------------------------
# Built by a cross compiler against Debian's arm64 libraries (tests/aarch64) into build/aarch64. qemu
# runs every op and the embedded model. MACHINE is what the code is for.
AARCH64      := build/aarch64
AARCH64_GNU  := aarch64-linux-gnu
AARCH64_ROOT := $(CURDIR)/$(AARCH64)/sysroot
QEMU         ?= qemu-aarch64-static

aarch64:
	@command -v $(AARCH64_GNU)-gcc >/dev/null || { \
	  echo "a build for aarch64 needs gcc-aarch64-linux-gnu" >&2; exit 1; }
	@tests/aarch64/sysroot.sh $(AARCH64_ROOT)
	@PKG_CONFIG_LIBDIR=$(AARCH64_ROOT)/usr/lib/$(AARCH64_GNU)/pkgconfig \
	 PKG_CONFIG_SYSROOT_DIR=$(AARCH64_ROOT) \
	  $(MAKE) MACHINE=aarch64 B=$(AARCH64) HOST=$(AARCH64)/segzero CUDA=0 MPI=0 \
	  CC='$(filter ccache,$(CC)) $(AARCH64_GNU)-gcc --sysroot=$(AARCH64_ROOT)' \
	  LD=$(AARCH64_GNU)-ld OBJCOPY=$(AARCH64_GNU)-objcopy all

aarch64-check: aarch64 $(LIB) $(HOST)
	@command -v $(QEMU) >/dev/null || { echo "aarch64-check needs qemu-user-static" >&2; exit 1; }
	@tests/aarch64/check.sh '$(QEMU) -L $(AARCH64_ROOT) $(AARCH64)/segzero' $(ARGS)
	@[ -n '$(ARGS)' ] || \
	  tests/aarch64/model.sh '$(QEMU) -L $(AARCH64_ROOT) $(AARCH64)/segzero' ./$(HOST)

# ---- lint and format -----------------------------------------------------------------------------
C_FILES = $(shell find runtime models tests -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \
                  -o -name '*.cc')

# All three run, so that one call shows everything.
lint:
	@mkdir -p build; status=0; \
	luacheck -q . || status=1; \
	clang-format --dry-run $(C_FILES) 2>&1 | sed -n '/Wclang-format-violations/s/:.*//p' | uniq -c | \
	  sed 's/$$/: places that make format would change/' | tee build/format.log; \
	[ ! -s build/format.log ] || status=1; \
	luajit tests/support/lint.lua || status=1; \
	exit $$status

format:
	@clang-format -i $(C_FILES)

# ---- runs and benchmarks -------------------------------------------------------------------------
# These compute on the CPU and do not need the CUDA library.
do-run: $(LIB) $(HOST)
	@./$(HOST) $(SCRIPT_RUN) $(ARGS)

# With SEGZERO_BENCH_MODEL=DIR the phases of that model, and with PYTHON= also its peers.
PEER := $(if $(PYTHON),python=$(PYTHON))
BENCH_OPTIONS := $(if $(SEGZERO_BENCH_MODEL),dtype=bf16 only=prefill,$(PEER))
BENCH_WIDE := $(SCRIPT_BENCH) model=tests/bench/bench_wide.json only=prefill
do-bench: $(LIB) $(HOST)
	@./$(HOST) $(SCRIPT_BENCH) $(BENCH_OPTIONS) $(ARGS)
	@./$(HOST) $(BENCH_WIDE) dtype=bf16
	@./$(HOST) $(BENCH_WIDE) dtype=int8
	@./$(HOST) $(SCRIPT_BENCH_SAM2) $(PEER)
ifneq ($(and $(SEGZERO_BENCH_MODEL),$(PYTHON)),)
	@$(PYTHON) tests/bench/bench_peers.py $(SEGZERO_BENCH_MODEL)
endif
	@echo "Not run, because it takes minutes: a whole GRPO step, ./$(HOST) $(SCRIPT_BENCH_STEP)"
	@echo "A model of real size: ./$(HOST) examples/random_checkpoint.lua size=3b out=DIR,"
	@echo "then SEGZERO_BENCH_MODEL=DIR make bench. PYTHON= adds transformers and llama.cpp"
	@echo "(tests/bench/bench_peers.py, pairs of short runs)."

do-pretrain: $(LIB) $(HOST)
	@./$(HOST) $(SCRIPT_PRETRAIN) $(ARGS)

# ---- install -------------------------------------------------------------------------------------
# bin/segzero finds ../lib/segzero/libsegzero.so and ../share/segzero relative to itself, so the
# installation can be moved. The headers are installed because Lua reads its declarations from them.
SHARE := $(DESTDIR)$(PREFIX)/share/segzero
SHARED_FILES := lua rewards recipes examples models/tiny docs/guide docs/ops.md docs/glossary.md \
                runtime/sz.h runtime/net/net.h \
                runtime/comm/comm.h runtime/ops/ops.def models/*.h models/*/*.h

# The man page and the shells' completion, where the shells look for them.
MAN_PAGE   := $(DESTDIR)$(PREFIX)/share/man/man1/segzero.1
BASH_WORDS := $(DESTDIR)$(PREFIX)/share/bash-completion/completions/segzero
ZSH_WORDS  := $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_segzero

# The folders that install makes are listed in share/segzero/folders, so that uninstall removes no
# others.
INSTALL_FOLDERS := $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/segzero $(SHARE) \
                   $(dir $(MAN_PAGE)) $(dir $(BASH_WORDS)) $(dir $(ZSH_WORDS))

install: all
	@made=$$(for d in $(INSTALL_FOLDERS:/=); do \
	    until [ -d "$$d" ]; do echo "$${d#$(DESTDIR)}"; d=$$(dirname "$$d"); done; done | sort -u); \
	  mkdir -p $(INSTALL_FOLDERS) && echo "$$made" >>$(SHARE)/folders
	@install -m 755 $(HOST) $(DESTDIR)$(PREFIX)/bin/segzero
	@install -m 755 $(LIB) $(DESTDIR)$(PREFIX)/lib/segzero/libsegzero.so
	@if [ -f $(CUDA_LIB) ]; then \
	  install -m 755 $(CUDA_LIB) $(DESTDIR)$(PREFIX)/lib/segzero/libsegzero_cuda.so; fi
	@if [ -f $(MPI_LIB) ]; then \
	  install -m 755 $(MPI_LIB) $(DESTDIR)$(PREFIX)/lib/segzero/libsegzero_mpi.so; fi
	@for f in $$(find $(SHARED_FILES) -type f 2>/dev/null); do \
	  mkdir -p "$(SHARE)/$${f%/*}" && install -m 644 "$$f" "$(SHARE)/$$f" || exit 1; done
	@./$(HOST) lua/segzero/commands/man.lua >$(MAN_PAGE)
	@./$(HOST) completion bash >$(BASH_WORDS)
	@./$(HOST) completion zsh >$(ZSH_WORDS)
	@echo "installed under $(DESTDIR)$(PREFIX): bin/segzero, lib/segzero, share/segzero"

uninstall:
	@made=$$(sort -ru $(SHARE)/folders 2>/dev/null); \
	  rm -f $(DESTDIR)$(PREFIX)/bin/segzero $(MAN_PAGE) $(BASH_WORDS) $(ZSH_WORDS); \
	  rm -rf $(DESTDIR)$(PREFIX)/lib/segzero $(SHARE); \
	  for d in $$made; do rmdir "$(DESTDIR)$$d" 2>/dev/null || true; done
	@echo "removed from $(DESTDIR)$(PREFIX): bin/segzero, lib/segzero, share/segzero"

# A folder for a machine that has CUDA and nothing else: the program for any recent x86-64 CPU, and
# the libraries that it needs. It is built apart, in build/portable.
bundle:
	@$(MAKE) B=build/portable HOST=build/portable/segzero all
	@BUILT=build/portable sh tests/gpu_check.sh bundle

# Pages that are made from the code.
docs: $(LIB) $(HOST)
	@./$(HOST) lua/segzero/tools/settings_doc.lua
	@./$(HOST) lua/segzero/tools/ops_doc.lua

clean:
	@rm -rf build segzero

# ---- help ----------------------------------------------------------------------------------------
define HELP_TEXT
make                 build ./segzero and build/libsegzero.so
make setup           install missing packages (apt-get), or print the command that does
make test            set-up, build, all tests; SEED=n sets the seed
                     FILTER=text runs the files whose name contains it (several texts: any of them)
                     CASE=text runs the cases whose name contains it
make fuzz            feed damaged files and texts to every reader; TIME=seconds for each (60)
make lint            luacheck, clang-format in check mode, file names in comments, links
make format          clang-format over all C, C++ and CUDA files
make run             set-up, build, segzero $(SCRIPT_RUN)
                     ARGS='key=value ...' changes its settings
make bench           set-up, build, segzero $(SCRIPT_BENCH) and $(SCRIPT_BENCH_SAM2)
                     PYTHON=python3 also times torch, transformers and sam2
                     a whole GRPO step takes minutes and is run by hand: $(SCRIPT_BENCH_STEP)
make pretrain        set-up, build, segzero $(SCRIPT_PRETRAIN)
make docs            write the generated pages: docs/settings.md, docs/ops.md
make install         install into PREFIX=$(PREFIX), below DESTDIR; make uninstall removes it
make clean           remove build/ and ./segzero
make cuda-emulated   the CUDA kernels compiled for the CPU: $(CUDA_EMULATED)
make amx-emulated    the program with AMX in software, for machines without it: $(AMX_EMULATED)
make aarch64         build/aarch64/segzero; make aarch64-check runs every op and the embedded model
                     in qemu, which takes minutes (tests/aarch64/README.md)
make bundle          build/bundle: what tests/gpu_check.sh needs on a machine with nothing but CUDA
options: CUDA=0 (no CUDA backend)  CUDA_ARCH='$(CUDA_ARCH)' (nvcc found: $(or $(NVCC),none))
         CC=  CFLAGS=  ARCH=native (for this processor only)  WERROR=1 (warnings are errors)  V=1 (show whole commands)
         SANITIZER=address|undefined|thread (builds into build/NAME, with a segzero there;
         address checks for undefined behaviour too)
endef
export HELP_TEXT

help:
	@printf '%s\n' "$$HELP_TEXT"
