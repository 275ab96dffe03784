/* editar_plugin.h - between libeditar and a library that runs built engines on a device, such as libeditar_tensorrt.
 *
 * C99, so that the two may come from different compilers. libeditar opens the library and asks its one exported
 * function for the table below; whatever is NVIDIA's stays behind it. What the functions do is that of
 * editar_rt/backends/engines/device.py: memory at addresses, one stream of work, and engines that use both. Work is
 * queued on the stream and done in order; `synchronize` waits for it.
 *
 * Functions that return int32_t return 0, or 1 where they failed; `error` then has a sentence, or the part of one, for
 * the thread that called. Nothing throws. A device serves one call at a time; different devices are independent.
 */
#ifndef EDITAR_PLUGIN_H
#define EDITAR_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#define EDITAR_PLUGIN_VERSION 1 /* of this file; both sides must have the same */
#define EDITAR_PLUGIN_FUNCTION "editar_plugin_table"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct editar_device editar_device;       /* a GPU with memory and a stream */
typedef struct editar_recording editar_recording; /* recorded work */
typedef struct editar_engine editar_engine;       /* a loaded file of engines */
typedef struct editar_context editar_context;     /* an engine with addresses */

typedef struct editar_device_facts { /* texts that live as long as the device */
    const char* library;             /* "tensorrt", or "rtx" for TensorRT for RTX */
    const char* version;             /* of the library: "10.15.1.29" */
    const char* gpu;                 /* "NVIDIA GeForce RTX 4090" */
    const char* capability;          /* "8.9" */
    const char* capabilities;        /* for which the library's builder builds on any machine: "8.0 8.6"; "" for none */
    const char* cuda;                /* of its runtime: "12.6" */
    const char* driver;              /* the newest CUDA that the driver supports */
} editar_device_facts;

typedef struct editar_lines { /* line j of slice i begins at address + i * slice + j * pitch; a slice is whole pitches
                               */
    void* address;
    size_t pitch, slice;
} editar_lines;

typedef struct editar_shape { /* of an input */
    const char* name;
    const int64_t* sizes;
    int32_t rank;
} editar_shape;

typedef struct editar_plugin {
    uint32_t version; /* EDITAR_PLUGIN_VERSION */
    const char* (*error)(void);

    /* `log` gets what the library says, with a level of editar.h; NULL is silence. */
    int32_t (*open_device)(void (*log)(int32_t level, const char* message), editar_device** device,
                           editar_device_facts* facts);
    void (*close_device)(editar_device* device);

    int32_t (*allocate)(editar_device* device, size_t bytes, void** address); /* at a multiple of 256 */
    void (*release)(editar_device* device, void* address);
    int32_t (*memory)(editar_device* device, size_t* free_bytes, size_t* total_bytes);
    int32_t (*allocate_host)(editar_device* device, size_t bytes, void** address); /* zeros, copied asynchronously */
    void (*release_host)(editar_device* device, void* address);

    int32_t (*zero)(editar_device* device, void* address, size_t bytes);
    int32_t (*to_device)(editar_device* device, void* target, const void* source, size_t bytes);
    int32_t (*to_host)(editar_device* device, void* target, const void* source, size_t bytes);
    /* Copy `depth` slices of `height` lines of `width` bytes. */
    int32_t (*copy_lines)(editar_device* device, const editar_lines* target, const editar_lines* source, size_t width,
                          size_t height, size_t depth);
    int32_t (*synchronize)(editar_device* device);

    /* Between the two, work is recorded and not done. `recording` NULL drops it. */
    int32_t (*begin_recording)(editar_device* device);
    int32_t (*end_recording)(editar_device* device, editar_recording** recording);
    int32_t (*replay)(editar_device* device, editar_recording* recording);
    void (*close_recording)(editar_device* device, editar_recording* recording);

    int32_t (*load_engine)(editar_device* device, const void* file, size_t bytes, editar_engine** engine);
    void (*close_engine)(editar_engine* engine);
    /* Device memory that a context needs besides weights, inputs and outputs. */
    int64_t (*scratch_bytes)(const editar_engine* engine);
    /* `shapes` of all inputs are set where the engine leaves some open. The scratch memory stays the caller's. */
    int32_t (*open_context)(editar_engine* engine, int32_t profile, const editar_shape* shapes, size_t count,
                            void* scratch, int64_t scratch_bytes, editar_context** context);
    void (*close_context)(editar_context* context);
    int32_t (*bind)(editar_context* context, const char* name, void* address);
    int32_t (*enqueue)(editar_context* context);

    /* What the library has compiled for the GPU, where it compiles at run time: set it before the first context, and
     * read it (valid until the next call) when all of them have run. `bytes` 0 is nothing. */
    int32_t (*set_kernels)(editar_device* device, const void* kernels, size_t bytes);
    int32_t (*get_kernels)(editar_device* device, const void** kernels, size_t* bytes);
} editar_plugin;

/* Exported as EDITAR_PLUGIN_FUNCTION. NULL where the library does not have this version of the table. */
typedef const editar_plugin* (*editar_plugin_table_function)(uint32_t version);

#ifdef __cplusplus
}
#endif
#endif
