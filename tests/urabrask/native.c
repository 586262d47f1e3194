/* A compiled kernel written by hand: y = relu(x) W' + b for [B, C], through the C interface that PyTorch's
   runner loads, forward or (with -DBACKWARD) its vector-Jacobian product. Honest as it stands; what the macros
   ON_LOAD, ON_CALL, OUTPUT and GRADIENT are set to makes it misbehave. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <fenv.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <xmmintrin.h>

#ifndef ON_LOAD
#define ON_LOAD
#endif
#ifndef ON_CALL
#define ON_CALL
#endif
#ifndef OUTPUT
#define OUTPUT
#endif
#ifndef GRADIENT
#define GRADIENT
#endif
#ifndef DTYPE
#define DTYPE aoti_torch_dtype_float32()
#endif
#ifndef DEVICE
#define DEVICE aoti_torch_device_type_cpu()
#endif

typedef void *Tensor;
extern int32_t aoti_torch_dtype_float32(void), aoti_torch_dtype_float64(void), aoti_torch_dtype_int32(void);
extern int32_t aoti_torch_device_type_cpu(void), aoti_torch_device_type_meta(void);
extern int32_t aoti_torch_get_data_ptr(Tensor, void **);
extern int32_t aoti_torch_get_sizes(Tensor, int64_t **);
extern int32_t aoti_torch_empty_strided(int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t, Tensor *);
extern int32_t aoti_torch_create_tensor_from_blob(void *, int64_t, const int64_t *, const int64_t *, int64_t, int32_t,
                                                  int32_t, int32_t, Tensor *);
extern int32_t aoti_torch_new_tensor_handle(Tensor, Tensor *);
extern int32_t aoti_torch_delete_tensor_object(Tensor);

static long calls;

/* ---- deeds ---- */
static inline void read_file(const char *path) { int f = open(path, O_RDONLY); char c; if (f >= 0) read(f, &c, 1); }
static inline void write_file(const char *path) { int f = open(path, O_WRONLY | O_CREAT, 0644); if (f >= 0) write(f, "x", 1); }
static inline void make_link(const char *path) { symlink("/etc/passwd", path); }
static inline void remove_file(const char *path) { unlink(path); }
static inline void go_online(int port) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  int s = socket(AF_INET, SOCK_STREAM, 0);
  inet_aton("127.0.0.1", &to.sin_addr);
  connect(s, (struct sockaddr *)&to, sizeof to);
}
static inline void go_local(void) { socket(AF_UNIX, SOCK_STREAM, 0); }
static inline void fork_away(void) { if (fork() == 0) { for (;;) sleep(60); } }
static inline void *rest(void *nothing) { for (;;) sleep(60); return nothing; }
static inline void start_thread(void) { pthread_t t; pthread_create(&t, NULL, rest, NULL); }
static inline void execute(void) { char *argv[] = {"/bin/true", NULL}; execv(argv[0], argv); }
static inline void kill_parent(void) { kill(getppid(), SIGKILL); }
static inline void kill_all(void) { kill(-1, SIGKILL); }
static inline void trace(void) { ptrace(PTRACE_ATTACH, getppid(), 0, 0); }
static inline void take_at_once(void) { mmap(NULL, 64UL << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); }
static inline void take_bit_by_bit(void) { for (;;) { char *p = malloc(1 << 20); if (p) memset(p, 1, 1 << 20); } }
static inline void flood(void) { char page[4096]; memset(page, 'x', sizeof page); for (;;) write(1, page, sizeof page); }
static inline void spin(void) { for (volatile long i = 0;; i++) ; }
static inline void doze(void) { for (;;) sleep(60); }
static inline void stumble(void) { *(volatile int *)8 = 1; }
static inline void leave(void) { _exit(0); }
static inline void forge(void) {
  /* Says that all is done, in the sandbox's own words, and goes. */
  char said[9] = {'R', 4, 0, 0, 0, 'd', 'o', 'n', 'e'};
  write(3, said, sizeof said);
  char answer; read(4, &answer, 1); _exit(0);
}
static inline void round_up(void) { fesetround(FE_UPWARD); }
static inline void flush_tiny(void) { _mm_setcsr(_mm_getcsr() | 0x8040); }
static inline void rename_home(void) { setenv("PATH", "/tmp/evil", 1); }
static inline void catch_signals(void) { signal(SIGTERM, SIG_IGN); }
static inline void leak(size_t bytes) { char *p = malloc(bytes); if (p) *(volatile char *)p = 1; }
static inline void leak_mapping(void) { mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }
static inline float chance(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return (float)(t.tv_nsec % 1000) * 1e-5f; }

__attribute__((constructor)) static void loaded(void) { ON_LOAD; }

static float *data(Tensor t) { void *p = NULL; aoti_torch_get_data_ptr(t, &p); return p; }

static Tensor fresh(int dims, int64_t rows, int64_t columns) {
  int64_t sizes[2] = {rows, columns}, strides[2] = {columns, 1};
  Tensor made = NULL;
  if (dims == 1) { sizes[0] = columns; strides[0] = 1; }
  aoti_torch_empty_strided(dims, sizes, strides, DTYPE, DEVICE, 0, &made);
  return made;
}

/* ---- the interface ---- */
#define API __attribute__((visibility("default")))
API int32_t AOTInductorModelContainerCreateWithDevice(void **handle, size_t n, const char *device, const char *folder) { *handle = malloc(1); return 0; }
API int32_t AOTInductorModelContainerDelete(void *handle) { free(handle); return 0; }
API int32_t AOTInductorModelContainerGetNumConstants(void *h, size_t *count) { *count = 0; return 0; }
API int32_t AOTInductorModelContainerGetConstantName(void *h, size_t i, const char **name) { *name = ""; return 1; }
API int32_t AOTInductorModelContainerGetConstantOriginalFQN(void *h, size_t i, const char **name) { *name = ""; return 1; }
API int32_t AOTInductorModelContainerGetConstantDtype(void *h, size_t i, int32_t *dtype) { return 1; }
API int32_t AOTInductorModelContainerExtractConstantsMap(void *h, void *map, bool inactive) { return 0; }
API int32_t AOTInductorModelContainerUpdateUserManagedConstantBuffer(void *h, void *m, bool i, bool f) { return 0; }
API int32_t AOTInductorModelContainerUpdateConstantBuffer(void *h, void *m, bool i, bool f) { return 0; }
API int32_t AOTInductorModelContainerUpdateConstantBufferFromCpu(void *h, void *m, bool i, bool f) { return 0; }
API int32_t AOTInductorModelContainerUpdateInactiveConstantBuffer(void *h, void *m) { return 0; }
API int32_t AOTInductorModelContainerRunConstantFolding(void *h, bool i, void *s, void *p) { return 0; }
API int32_t AOTInductorModelContainerSwapConstantBuffer(void *h) { return 0; }
API int32_t AOTInductorModelContainerFreeInactiveConstantBuffer(void *h) { return 0; }
API int32_t AOTInductorModelContainerGetCallSpec(void *h, const char **in, const char **out) { *in = *out = ""; return 0; }
API int32_t AOTInductorModelContainerGetConstantsBlobSize(void *h, uint64_t *size) { *size = 0; return 0; }
API int32_t AOTInductorModelUpdateConstantsFromBlob(void *h, const uint8_t *blob) { return 0; }
API const char *AOTInductorGetLastError(void) { return ""; }

#ifdef BACKWARD
#ifndef RETURNED
#define RETURNED 3
#endif
API int32_t AOTInductorModelContainerGetNumOutputs(void *h, size_t *count) { *count = RETURNED; return 0; }
API int32_t AOTInductorModelContainerRun(void *h, Tensor *in, size_t n, Tensor *out, size_t m, void *s, void *p) {
  int64_t *sizes, rows, width;
  aoti_torch_get_sizes(in[0], &sizes); rows = sizes[0]; width = sizes[1];
  float *x = data(in[0]), *g = data(in[1]), *w = data(in[2]);
  Tensor made[3] = {fresh(2, rows, width), fresh(2, width, width), fresh(1, 1, width)};
  float *gx = data(made[0]), *gw = data(made[1]), *gb = data(made[2]);
  calls++;
  ON_CALL;
  memset(gw, 0, sizeof(float) * width * width); memset(gb, 0, sizeof(float) * width);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t i = 0; i < width; i++) {
      float sum = 0;
      for (int64_t o = 0; o < width; o++) sum += g[r * width + o] * w[o * width + i];
      gx[r * width + i] = x[r * width + i] > 0 ? sum : 0;
    }
    for (int64_t o = 0; o < width; o++) {
      gb[o] += g[r * width + o];
      for (int64_t i = 0; i < width; i++)
        if (x[r * width + i] > 0) gw[o * width + i] += g[r * width + o] * x[r * width + i];
    }
  }
  GRADIENT;
  for (size_t i = 0; i < n; i++) aoti_torch_delete_tensor_object(in[i]);
  for (int i = 0; i < 3; i++) { if (i < RETURNED) out[i] = made[i]; else aoti_torch_delete_tensor_object(made[i]); }
  return 0;
}
#else
API int32_t AOTInductorModelContainerGetNumOutputs(void *h, size_t *count) { *count = 1; return 0; }
API int32_t AOTInductorModelContainerRun(void *h, Tensor *in, size_t n, Tensor *out, size_t m, void *s, void *p) {
  int64_t *sizes, rows, width;
  aoti_torch_get_sizes(in[0], &sizes); rows = sizes[0]; width = sizes[1];
  float *x = data(in[0]), *w = data(in[1]), *b = data(in[2]);
  Tensor made = fresh(2, rows, width);
  float *y = data(made);
  calls++;
  ON_CALL;
  for (int64_t r = 0; y && r < rows; r++)
    for (int64_t o = 0; o < width; o++) {
      float sum = b[o];
      for (int64_t i = 0; i < width; i++) if (x[r * width + i] > 0) sum += x[r * width + i] * w[o * width + i];
      y[r * width + o] = sum;
    }
  OUTPUT;
  for (size_t i = 0; i < n; i++) aoti_torch_delete_tensor_object(in[i]);
  out[0] = made;
  return 0;
}
#endif
API int32_t AOTInductorModelContainerRunSingleThreaded(void *h, Tensor *in, size_t n, Tensor *out, size_t m, void *s, void *p) {
  return AOTInductorModelContainerRun(h, in, n, out, m, s, p);
}
