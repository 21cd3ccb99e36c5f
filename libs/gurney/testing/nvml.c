/* A stand-in for NVIDIA's management library: what there is stands in the file that GURNEY_FAKE_NVML names, and is read
   anew at each call, so that a test can change it. Without the file there is no driver. Signatures, codes and structures
   are those of nvml.h, as far as the agent uses them; with OLD as far as a driver of 2020 has them. The lines of the file are those of gurney.testing.nvml. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10
};
enum { MOST = 64, CARDS = 16, INSTANCES = 7 };

typedef struct {
    int card, number; /* number: of a MIG instance; -1: the card itself */
    char uuid[96], name[96];
    unsigned long long memory, used, reserved, ecc;
    int major, minor, busy, error, divided, xid;
} device_t;

typedef struct {
    char uuid[96];
    unsigned pid;
    long long held;
    int busy;
} process_t;

typedef struct {
    int init, devices, processes;
    char driver[80], hang[80];
    device_t device[MOST];
    process_t process[MOST];
} state_t;

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned gpu, memory; } rates_t;
typedef struct { unsigned pid; unsigned long long held; unsigned instance, compute; } running_t;
typedef struct { unsigned pid; unsigned long long at; unsigned sm, memory, encoder, decoder; } sample_t;
typedef struct { void *device; unsigned long long type, data; unsigned instance, compute; } event_t;

static int opened;
static int listened[CARDS], told[CARDS];
static unsigned long long tick = 1000000;

static int load(state_t *state) {
    const char *path = getenv("GURNEY_FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    memset(state, 0, sizeof *state);
    if (!file)
        return 0;
    while (fgets(line, sizeof line, file)) {
        device_t *device = &state->device[state->devices];
        process_t *process = &state->process[state->processes];
        sscanf(line, "init %d", &state->init);
        sscanf(line, "driver %79s", state->driver);
        sscanf(line, "hang %79s", state->hang);
        if (state->devices < MOST
            && sscanf(line, "device %d %d %95s %llu %llu %llu %d.%d %d %d %llu %d %d %95[^\n]", &device->card,
                      &device->number, device->uuid, &device->memory, &device->used, &device->reserved, &device->major,
                      &device->minor, &device->busy, &device->error, &device->ecc, &device->divided, &device->xid,
                      device->name) == 14)
            state->devices++;
        if (state->processes < MOST
            && sscanf(line, "process %95s %u %lld %d", process->uuid, &process->pid, &process->held,
                      &process->busy) == 4)
            state->processes++;
    }
    fclose(file);
    return 1;
}

/* Where the state says so, this call does not come back before the state says otherwise. */
static int enter(state_t *state, const char *name) {
    int found = load(state);
    while (found && !strcmp(state->hang, name)) {
        usleep(2000);
        found = load(state);
    }
    return !found ? DRIVER_NOT_LOADED : opened ? SUCCESS : UNINITIALIZED;
}

static device_t *find(state_t *state, int card, int number) {
    for (int i = 0; i < state->devices; i++)
        if (state->device[i].card == card && state->device[i].number == number)
            return &state->device[i];
    return NULL;
}

static void *handle_of(int card, int number) { return (void *)(size_t)(0x1000 + card * 16 + number + 1); }

static int of_handle(state_t *state, const char *name, void *handle, device_t **device) {
    int code = enter(state, name), place = (int)(size_t)handle - 0x1000;
    if (code)
        return code;
    device_t *card = find(state, place / 16, -1);
    *device = find(state, place / 16, place % 16 - 1);
    if (!card || !*device)
        return INVALID_ARGUMENT;
    return card->error;
}

#define DEVICE                                                   \
    state_t state;                                               \
    device_t *device = NULL;                                     \
    int code = of_handle(&state, __func__, handle, &device);     \
    if (code)                                                    \
        return code

int nvmlInitWithFlags(unsigned flags) {
    state_t state;
    (void)flags;
    if (enter(&state, __func__) == DRIVER_NOT_LOADED)
        return DRIVER_NOT_LOADED;
    if (state.init)
        return state.init;
    if (!opened++) {
        memset(listened, 0, sizeof listened);
        memset(told, 0, sizeof told);
    }
    return SUCCESS;
}

int nvmlShutdown(void) {
    if (!opened)
        return UNINITIALIZED;
    opened--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error of the stand-in";
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    state_t state;
    int code = enter(&state, __func__);
    if (!code)
        snprintf(version, length, "%s", state.driver);
    return code;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    state_t state;
    int code = enter(&state, __func__);
    *count = 0;
    for (int i = 0; i < state.devices; i++)
        *count += state.device[i].number < 0;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    state_t state;
    int code = enter(&state, __func__);
    device_t *card = code ? NULL : find(&state, (int)index, -1);
    if (!code && !card)
        return INVALID_ARGUMENT;
    *handle = handle_of((int)index, -1);
    return code ? code : card->error;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    DEVICE;
    snprintf(uuid, length, "%s", device->uuid);
    return SUCCESS;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    DEVICE;
    snprintf(name, length, "%s", device->name);
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    DEVICE;
    *major = device->major;
    *minor = device->minor;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    DEVICE;
    unsigned long long used = device->used + device->reserved;
    *memory = (memory_t){device->memory, device->memory - used, used};
    return SUCCESS;
}

#ifndef OLD
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2_t *memory) {
    DEVICE;
    if (memory->version != (sizeof *memory | 2u << 24))
        return 25; /* ARGUMENT_VERSION_MISMATCH */
    memory->total = device->memory;
    memory->reserved = device->reserved;
    memory->free = device->memory - device->used - device->reserved;
    memory->used = device->used;
    return SUCCESS;
}
#endif

int nvmlDeviceGetUtilizationRates(void *handle, rates_t *rates) {
    DEVICE;
    if (device->number >= 0 || device->divided)
        return NOT_SUPPORTED;
    *rates = (rates_t){(unsigned)device->busy, 0};
    return SUCCESS;
}

#ifdef OLD
int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *count, running_t *running) {
#else
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, running_t *running) {
#endif
    unsigned room = *count, found = 0;
    DEVICE;
    for (int i = 0; i < state.processes; i++) {
        if (strcmp(state.process[i].uuid, device->uuid) || state.process[i].held < -1)
            continue;
        if (running && found < room)
            running[found] = (running_t){state.process[i].pid, (unsigned long long)state.process[i].held, 0, 0};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetProcessUtilization(void *handle, sample_t *samples, unsigned *count, unsigned long long since) {
    unsigned room = *count, found = 0;
    DEVICE;
    if (device->number >= 0 || device->divided)
        return NOT_SUPPORTED;
    if (samples)
        tick++;
    for (int i = 0; i < state.processes; i++) {
        if (strcmp(state.process[i].uuid, device->uuid) || state.process[i].busy <= 0 || tick < since)
            continue;
        if (samples && found < room)
            samples[found] = (sample_t){state.process[i].pid, state.process[i].held < -1 ? ~0ull : tick,
                                        (unsigned)state.process[i].busy, 0, 0, 0};
        found++;
    }
    *count = found;
    return !found ? NOT_FOUND : found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#ifndef OLD
int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *pending) {
    DEVICE;
    if (device->number >= 0)
        return INVALID_ARGUMENT;
    *now = *pending = (unsigned)device->divided;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    DEVICE;
    *count = INSTANCES;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **instance) {
    DEVICE;
    if (!find(&state, device->card, (int)index))
        return NOT_FOUND;
    *instance = handle_of(device->card, (int)index);
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed) {
    DEVICE;
    *corrected = *uncorrected = *pending = *failed = 0;
    return NOT_SUPPORTED;
}

#endif

int nvmlDeviceGetTotalEccErrors(void *handle, int type, int counter, unsigned long long *count) {
    (void)type, (void)counter;
    DEVICE;
    *count = device->ecc;
    return SUCCESS;
}

int nvmlEventSetCreate(void **set) {
    *set = listened;
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(void *handle, unsigned long long types, void *set) {
    (void)types, (void)set;
    DEVICE;
    listened[device->card] = 1;
    return SUCCESS;
}

int nvmlEventSetWait_v2(void *set, event_t *event, unsigned timeout) {
    state_t state;
    int code = enter(&state, __func__);
    (void)set, (void)timeout;
    for (int i = 0; !code && i < state.devices; i++) {
        device_t *device = &state.device[i];
        if (!device->xid || !listened[device->card] || told[device->card] == device->xid)
            continue;
        told[device->card] = device->xid;
        *event = (event_t){handle_of(device->card, -1), 8, (unsigned long long)device->xid, ~0u, ~0u};
        return SUCCESS;
    }
    return code ? code : TIMEOUT;
}

int nvmlEventSetFree(void *set) {
    (void)set;
    return SUCCESS;
}
