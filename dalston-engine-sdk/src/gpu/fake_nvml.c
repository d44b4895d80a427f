/* A driver for tests: the functions of NVML that the crate calls. The file MODE sets the behaviour of its two GPUs. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15, MISMATCH = 18 };

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_v2;
typedef struct { unsigned gpu, memory; } utilization;

static const unsigned long long MIB = 1024ULL * 1024;

/* The text after a word in MODE, or NULL without that word. */
static const char *said(const char *word) {
    static __thread char text[256];
    memset(text, 0, sizeof text);
    FILE *file = fopen(MODE, "r");
    if (file) {
        if (!fread(text, 1, sizeof text - 1, file)) text[0] = 0;
        fclose(file);
    }
    char *found = strstr(text, word);
    return found ? found + strlen(word) : NULL;
}

static void hang_if_told(void) {
    while (said("hang")) usleep(1000);
}

static int lost(size_t device) {
    const char *which = said("lost=");
    return which && (which[0] == 'a' || (size_t)(which[0] - '0') == device - 1);
}

/* "since=" and a digit: the generation of the driver. A library of another generation does not work. */
static char since(void) {
    const char *digit = said("since=");
    return digit ? *digit : 0;
}

static char begun;

int nvmlInit_v2(void) {
    begun = since();
    return said("mismatch") ? MISMATCH : SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    hang_if_told();
    if (begun != since()) return UNINITIALIZED;
    *count = said("one") ? 1 : 2;
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    snprintf(version, length, "550.54.15");
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(size_t)(index + 1);
    return index < 2 ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    snprintf(name, length, "NVIDIA L4");
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *memory) {
    if (lost((size_t)device)) return GPU_IS_LOST;
    if (memory->version != (sizeof *memory | 2 << 24)) return INVALID_ARGUMENT;
    memory->total = 23034 * MIB;
    memory->used = 1024 * MIB * (size_t)device;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, utilization *rates) {
    if (said("shy")) return NOT_SUPPORTED;
    rates->gpu = 37;
    rates->memory = 5;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    *milliwatts = 31500;
    return said("shy") ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *celsius) {
    *celsius = 41;
    return said("shy") ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = 8;
    *minor = 9;
    return SUCCESS;
}

/* Another process, and this one if MODE sets its MiB on each GPU: "own=" and a number or "?". */
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_v2 *processes) {
    const char *own = said("own=");
    unsigned room = *count;
    *count = own ? 2 : 1;
    if (room < *count || !processes) return INSUFFICIENT_SIZE;
    processes[0].pid = 1;
    processes[0].used = 512 * MIB;
    if (own) {
        processes[1].pid = getpid();
        processes[1].used = own[0] == '?' ? ~0ULL : strtoull(own, NULL, 10) * MIB;
    }
    return SUCCESS;
}
