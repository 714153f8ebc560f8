// A ggml backend that says it is CUDA and computes on the CPU, so that an instance on GPUs can be
// tested from end to end on a host that has none. The GPUs are those of the stand-in nvidia-smi, from
// /etc/stand_in_nvidia_smi/state.json (or the file that STAND_IN_NVIDIA_SMI_STATE names):
//
//     fault          not null: there is no GPU
//     gpus           [{index, uuid, name, compute_capability, memory_total_mib, base_used_mib, bus_id}]
//     layers_on_cpu  optional, true: the GPUs take the KV cache and no weights. llama-server then
//                    answers 200 and says "offloaded N/N layers to GPU" with all weights on the CPU.
//
// Names and errors are those of ggml-cuda.cu. What a GPU says is free counts base_used_mib and what
// this process took on it, not what others took.

#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "nlohmann/json.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace {

using nlohmann::json;

constexpr size_t MIB = 1024 * 1024;
constexpr size_t ALIGNMENT = 128;

struct Gpu {
    int number = 0;  // in "CUDA0"; not the index in the file
    std::string name, description, bus_id;
    size_t total = 0, used_by_others = 0;
    std::atomic<size_t> allocated{0};
    bool takes_weights = true;
    ggml_backend_device device{};
    ggml_backend_buffer_type buffer_type{};

    size_t free() const {
        const size_t used = used_by_others + allocated;
        return used < total ? total - used : 0;
    }
};

Gpu & gpu_of(ggml_backend_dev_t device) { return *static_cast<Gpu *>(device->context); }
Gpu & gpu_of(ggml_backend_buffer_type_t type) { return gpu_of(type->device); }

// Device memory: a CPU buffer under another name, and not said to be host memory.

const char * buffer_type_name(ggml_backend_buffer_type_t type) { return gpu_of(type).name.c_str(); }
size_t buffer_type_alignment(ggml_backend_buffer_type_t) { return ALIGNMENT; }
bool is_device_memory(ggml_backend_buffer_type_t type) { return type->iface.get_name == buffer_type_name; }

void buffer_free(ggml_backend_buffer_t buffer) {
    gpu_of(buffer->buft).allocated -= buffer->size;
    std::free(buffer->context);
}

ggml_backend_buffer_t buffer_alloc(ggml_backend_buffer_type_t type, size_t size) {
    Gpu & gpu = gpu_of(type);
    void * memory = nullptr;
    if (size > gpu.free() || posix_memalign(&memory, ALIGNMENT, size) != 0) {
        GGML_LOG_ERROR("ggml_backend_cuda_buffer_type_alloc_buffer: allocating %.2f MiB on device %d: "
                       "cudaMalloc failed: out of memory\n", double(size) / MIB, gpu.number);
        return nullptr;
    }
    gpu.allocated += size;
    ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(memory, size);
    buffer->buft = type;
    buffer->iface.free_buffer = buffer_free;
    return buffer;
}

// Pinned main memory. llama-server puts some buffers of the CPU's there, which are then called CUDA_Host.

const char * host_type_name(ggml_backend_buffer_type_t) { return "CUDA_Host"; }

ggml_backend_buffer_t host_alloc(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer != nullptr) {
        buffer->buft = type;
    }
    return buffer;
}

ggml_backend_buffer_type_t host_buffer_type(ggml_backend_dev_t device) {
    static const ggml_backend_buffer_type_i & cpu = ggml_backend_cpu_buffer_type()->iface;
    static ggml_backend_buffer_type type = {
        {host_type_name, host_alloc, cpu.get_alignment, nullptr, cpu.get_alloc_size, cpu.is_host}, device, nullptr};
    return &type;
}

// Computing: each backend owns one of the CPU's. The CPU's plugin is loaded after this one, so it is
// looked up no earlier than here.

ggml_backend_t cpu_of(ggml_backend_t backend) { return static_cast<ggml_backend_t>(backend->context); }
const char * backend_name(ggml_backend_t backend) { return gpu_of(backend->device).name.c_str(); }
void backend_event(ggml_backend_t, ggml_backend_event_t) {}

void backend_free(ggml_backend_t backend) {
    ggml_backend_free(cpu_of(backend));
    delete backend;
}

ggml_status backend_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    return ggml_backend_graph_compute(cpu_of(backend), graph);
}

ggml_backend_t backend_init(ggml_backend_dev_t device, const char *) {
    static ggml_guid guid = {'s', 't', 'a', 'n', 'd', '-', 'i', 'n', ' ', 'C', 'U', 'D', 'A'};
    ggml_backend_t cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    if (cpu == nullptr) {
        return nullptr;
    }
    ggml_backend_i iface{};
    iface.get_name = backend_name;
    iface.free = backend_free;
    iface.graph_compute = backend_compute;
    iface.event_record = backend_event;
    iface.event_wait = backend_event;
    return new ggml_backend{&guid, iface, device, cpu};
}

// The real one has no such function; without it each CPU backend would run its default of 4 threads,
// and more threads than cores make it slower a hundred times.
void set_n_threads(ggml_backend_t backend, int n_threads) {
    ggml_backend_reg_t cpu = ggml_backend_dev_backend_reg(cpu_of(backend)->device);
    void * function = ggml_backend_reg_get_proc_address(cpu, "ggml_backend_set_n_threads");
    reinterpret_cast<ggml_backend_set_n_threads_t>(function)(cpu_of(backend), n_threads);
}

// The device.

const char * device_name(ggml_backend_dev_t device) { return gpu_of(device).name.c_str(); }
const char * device_description(ggml_backend_dev_t device) { return gpu_of(device).description.c_str(); }
enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }
ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t device) { return &gpu_of(device).buffer_type; }

void device_memory(ggml_backend_dev_t device, size_t * free, size_t * total) {
    *free = gpu_of(device).free();
    *total = gpu_of(device).total;
}

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    props->name = device_name(device);
    props->description = device_description(device);
    props->type = device_type(device);
    props->device_id = gpu_of(device).bus_id.c_str();
    device_memory(device, &props->memory_free, &props->memory_total);
    // With async and events llama.cpp runs several devices as a pipeline, which takes memory of its own.
    props->caps = {/*async*/ true, /*host_buffer*/ true, /*from_host_ptr*/ false, /*events*/ true, /*mmap*/ true};
}

bool device_supports_buffer_type(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
    return is_device_memory(type) && type->device == device;
}

bool uses_weights(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_MUL_MAT: case GGML_OP_MUL_MAT_ID: case GGML_OP_MUL: case GGML_OP_ADD: case GGML_OP_GET_ROWS:
            return true;
        default:
            return false;
    }
}

bool device_supports_op(ggml_backend_dev_t device, const ggml_tensor * op) {
    // Refusing every operation would make llama-server abort: the KV cache is on the device in any case.
    if (!gpu_of(device).takes_weights && uses_weights(op)) {
        return false;
    }
    for (const ggml_tensor * source : op->src) {
        ggml_backend_buffer_type_t type = source && source->buffer ? source->buffer->buft : nullptr;
        if (type && is_device_memory(type) && type->device != device) {
            return false;
        }
    }
    return ggml_backend_dev_supports_op(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), op);
}

// Large batches are computed on the device although the weights lie on the CPU.
bool device_offload_op(ggml_backend_dev_t, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS: return false;
        case GGML_OP_MUL_MAT: return op->ne[1] >= 32;
        case GGML_OP_MUL_MAT_ID: case GGML_OP_ROPE: case GGML_OP_ROPE_BACK: return op->ne[2] >= 32;
        default: return ggml_nrows(op) >= 32;
    }
}

ggml_backend_event_t event_new(ggml_backend_dev_t device) { return new ggml_backend_event{device, nullptr}; }
void event_free(ggml_backend_dev_t, ggml_backend_event_t event) { delete event; }
void event_synchronize(ggml_backend_dev_t, ggml_backend_event_t) {}

constexpr ggml_backend_buffer_type_i BUFFER_TYPE = {
    buffer_type_name, buffer_alloc, buffer_type_alignment, nullptr, nullptr, nullptr};
constexpr ggml_backend_device_i DEVICE = {
    device_name, device_description, device_memory, device_type, device_props, backend_init, device_buffer_type,
    host_buffer_type, nullptr, device_supports_op, device_supports_buffer_type, device_offload_op,
    event_new, event_free, event_synchronize};

// Which GPUs there are, and in which order.

double capability(const json & gpu) {
    const json & said = gpu.at("compute_capability");
    return said.is_null() ? 0 : std::stod(said.get<std::string>());
}

std::vector<json> gpus_in_order(const json & state) {
    std::vector<json> gpus;
    if (state.at("fault").is_null()) {
        gpus = state.at("gpus").get<std::vector<json>>();
    }
    std::sort(gpus.begin(), gpus.end(), [](const json & a, const json & b) { return a.at("index") < b.at("index"); });
    const char * order = std::getenv("CUDA_DEVICE_ORDER");
    if (order == nullptr || strcmp(order, "PCI_BUS_ID") != 0) {
        // The fastest first is CUDA's default: its numbers are then not nvidia-smi's.
        std::stable_sort(gpus.begin(), gpus.end(),
                         [](const json & a, const json & b) { return capability(a) > capability(b); });
    }
    return gpus;
}

// CUDA_VISIBLE_DEVICES: indices, or beginnings of UUIDs if the first entry is one. The list ends at
// the first entry that names no GPU; with a GPU named twice there is none at all.
std::vector<json> visible_gpus(const std::vector<json> & gpus) {
    const char * list = std::getenv("CUDA_VISIBLE_DEVICES");
    if (list == nullptr) {
        return gpus;
    }
    const bool by_uuid = strncmp(list, "GPU-", 4) == 0;
    std::vector<json> visible;
    std::stringstream entries(list);
    for (std::string entry; std::getline(entries >> std::ws, entry, ',');) {
        std::vector<json> named;
        for (size_t i = 0; i < gpus.size(); i++) {
            const bool found = by_uuid ? gpus[i].at("uuid").get<std::string>().rfind(entry, 0) == 0
                                       : entry == std::to_string(i);
            if (found && !entry.empty()) {
                named.push_back(gpus[i]);
            }
        }
        if (named.size() != 1) {
            break;
        }
        if (std::find(visible.begin(), visible.end(), named[0]) != visible.end()) {
            return {};
        }
        visible.push_back(named[0]);
    }
    return visible;
}

std::deque<Gpu> gpus;  // a deque, because ggml keeps the devices' addresses

void read_gpus(ggml_backend_reg_t reg) {
    const char * path = std::getenv("STAND_IN_NVIDIA_SMI_STATE");
    std::ifstream file(path ? path : "/etc/stand_in_nvidia_smi/state.json");
    const json state = json::parse(file);
    for (const json & found : visible_gpus(gpus_in_order(state))) {
        Gpu & gpu = gpus.emplace_back();
        gpu.number = int(gpus.size()) - 1;
        gpu.name = "CUDA" + std::to_string(gpu.number);
        gpu.description = found.at("name");
        gpu.bus_id = found.at("bus_id");
        std::transform(gpu.bus_id.begin(), gpu.bus_id.end(), gpu.bus_id.begin(), ::tolower);
        gpu.total = found.at("memory_total_mib").get<size_t>() * MIB;
        gpu.used_by_others = found.at("base_used_mib").get<size_t>() * MIB;
        gpu.takes_weights = !state.value("layers_on_cpu", false);
        gpu.device = {DEVICE, reg, &gpu};
        gpu.buffer_type = {BUFFER_TYPE, &gpu.device, nullptr};
    }
    if (gpus.empty()) {
        GGML_LOG_ERROR("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected\n");
    }
}

const char * reg_name(ggml_backend_reg_t) { return "CUDA"; }
size_t reg_device_count(ggml_backend_reg_t) { return gpus.size(); }
ggml_backend_dev_t reg_device(ggml_backend_reg_t, size_t index) { return &gpus.at(index).device; }

void * reg_proc_address(ggml_backend_reg_t, const char * name) {
    return strcmp(name, "ggml_backend_set_n_threads") == 0 ? reinterpret_cast<void *>(set_n_threads) : nullptr;
}

ggml_backend_reg_t stand_in_cuda_reg() {
    static ggml_backend_reg reg = {
        GGML_BACKEND_API_VERSION, {reg_name, reg_device_count, reg_device, reg_proc_address}, nullptr};
    try {
        read_gpus(&reg);
    } catch (const std::exception & problem) {
        gpus.clear();
        GGML_LOG_ERROR("stand-in CUDA: the state file cannot be used: %s\n", problem.what());
    }
    return &reg;
}

}  // namespace

GGML_BACKEND_DL_IMPL(stand_in_cuda_reg)
