/* CUDA's runtime in host memory, for tests: what is queued is done at once. Compiled with gcc into libcudart.so. */
#include <stdlib.h>
#include <string.h>

static int devices = 1, driver = 12060, capturing = 0, can_capture = 0;
static size_t held = 0, total = 1 << 20;

void set_devices(int count) { devices = count; }
void set_driver(int version) { driver = version; }
void set_capture(int on) { can_capture = on; }
size_t held_bytes(void) { return held; }

const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : code == 100 ? "no device" : "other"; }
int cudaDriverGetVersion(int *version) { *version = driver; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 12060; return 0; }
int cudaGetDeviceCount(int *count) {
    if (driver < 12000) return 35;
    *count = devices;
    return devices ? 0 : 100;
}
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 7; return device; }
int cudaGetDeviceProperties_v2(char *properties, int device) { strcpy(properties, "Orin"); return device; }
int cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) { *free_bytes = total - held; *total_bytes = total; return 0; }
int cudaMalloc(void **address, size_t size) {
    if (held + size > total) return 2;
    size_t *block = aligned_alloc(256, ((size + 255) / 256 + 1) * 256);
    *block = size;
    held += size;
    *address = (char *)block + 256;
    return 0;
}
int cudaFree(void *address) { size_t *block = (size_t *)((char *)address - 256); held -= *block; free(block); return 0; }
int cudaHostAlloc(void **address, size_t size, unsigned flags) { *address = malloc(size); return flags; }
int cudaFreeHost(void *address) { free(address); return 0; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { *stream = (void *)7; return flags != 1; }
int cudaStreamSynchronize(void *stream) { return capturing || stream != (void *)7; }
int cudaMemsetAsync(void *address, int value, size_t size, void *stream) {
    if (stream != (void *)7) return 1;
    memset(address, value, size);
    return 0;
}
int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream) {
    if (kind < 1 || kind > 3 || stream != (void *)7) return 1;
    memcpy(target, source, size);
    return 0;
}
int cudaMemcpy2DAsync(char *target, size_t target_pitch, const char *source, size_t source_pitch, size_t width,
                      size_t height, int kind, void *stream) {
    if (kind != 3 || stream != (void *)7 || width > target_pitch || width > source_pitch) return 1;
    for (size_t i = 0; i < height; i++) memcpy(target + i * target_pitch, source + i * source_pitch, width);
    return 0;
}
struct place { void *array; size_t x, y, z; char *address; size_t pitch, width, lines; };
struct copy_3d { struct place source, target; size_t width, height, depth; int kind; };
int cudaMemcpy3DAsync(const struct copy_3d *copy, void *stream) {
    const struct place *s = &copy->source, *t = &copy->target;
    if (copy->kind != 3 || stream != (void *)7 || s->array || t->array || copy->width > t->pitch || copy->height > t->lines)
        return 1;
    for (size_t i = 0; i < copy->depth; i++)
        for (size_t j = 0; j < copy->height; j++)
            memcpy(t->address + (i * t->lines + j) * t->pitch, s->address + (i * s->lines + j) * s->pitch, copy->width);
    return 0;
}
int cudaStreamBeginCapture(void *stream, int mode) { capturing = 1; return mode != 2 || stream != (void *)7; }
int cudaStreamEndCapture(void *stream, void **graph) {
    capturing = 0;
    *graph = (void *)8;
    return can_capture && stream == (void *)7 ? 0 : 901;
}
int cudaGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    *executable = (void *)9;
    return graph != (void *)8 || flags;
}
int cudaGraphDestroy(void *graph) { return graph != (void *)8; }
int cudaGraphExecDestroy(void *executable) { return executable != (void *)9; }
static int launches = 0;
int launched(void) { return launches; }
int cudaGraphLaunch(void *executable, void *stream) { launches++; return executable != (void *)9 || stream != (void *)7; }
