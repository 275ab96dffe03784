#include "engines/engines.h"

#include <algorithm>
#include <set>

#include "error.h"
#include "facts.h"

namespace editar {

void EngineContext::bind(const std::string& name, void* address) const {
    if (device_.plugin().bind(context_, name.c_str(), address) != 0)
        throw backend_error("the engine " + file_ + " has no tensor " + name + "; build the engines again");
}

void EngineContext::enqueue() const {
    if (device_.plugin().enqueue(context_) != 0)
        throw backend_error("the engine " + file_ + " does not run: " + device_.said());
}

std::unique_ptr<Engines> Engines::open(const Bundle& bundle, const editar_plugin& plugin, const std::string& named,
                                       const std::string& cache) {
    const std::vector<std::string> folders = choose_engine_folders(bundle, named);
    auto device = std::make_unique<Device>(plugin);
    std::vector<std::string> reasons;
    for (const std::string& folder : folders) {
        try {
            BuildInfo info = read_build(folder);
            check_build(info, folder, bundle, *device);
            Trial trial(bundle, folder, info, *device);
            return std::unique_ptr<Engines>(
                new Engines(bundle, std::move(device), folder, std::move(info), std::move(trial), cache));
        } catch (const Error& error) {
            // Of several folders, what is wrong with one does not matter where another one runs.
            if (device == nullptr || error.status() != EDITAR_BACKEND_FAILED) throw;
            if (std::find(reasons.begin(), reasons.end(), error.what()) == reasons.end())
                reasons.emplace_back(error.what());
        }
    }
    std::string all;
    for (const std::string& reason : reasons) all += (all.empty() ? "" : "; ") + reason;
    throw backend_error(all);
}

Engines::Engines(const Bundle& bundle, std::unique_ptr<Device> device, std::string folder, BuildInfo info, Trial trial,
                 const std::string& cache)
    : bundle_(bundle),
      device_(std::move(device)),
      folder_(std::move(folder)),
      info_(std::move(info)),
      trial_(std::move(trial)) {
    // Allocated for the largest engine before any context, because recorded steps keep the address.
    for (const auto& each : info_.engines) scratch_bytes_ = std::max(scratch_bytes_, each.second.scratch_bytes);
    if (info_.library == facts::engines::RTX) {  // a machine that only builds does not learn how much they need
        scratch_bytes_ = 0;
        std::set<std::string> files;
        for (const auto& each : info_.engines) files.insert(each.second.file);
        for (const std::string& file : files)
            scratch_bytes_ = std::max(scratch_bytes_, device_->plugin().scratch_bytes(loaded(file)));
        std::vector<std::string> identity = info_.hashes;
        const editar_device_facts& facts = device_->facts();
        for (const char* fact : {facts.gpu, facts.capability, facts.driver, facts.version}) identity.emplace_back(fact);
        kernels_ = std::make_unique<KeptKernels>(cache, identity);
        const std::string saved = kernels_->read();
        device_->check(device_->plugin().set_kernels(device_->handle(), saved.data(), saved.size()));
    }
    if (scratch_bytes_ > 0) scratch_ = std::make_unique<Memory>(*device_, static_cast<size_t>(scratch_bytes_), false);
}

Engines::~Engines() {
    const void* kernels = nullptr;
    size_t bytes = 0;
    if (kernels_ != nullptr && device_->plugin().get_kernels(device_->handle(), &kernels, &bytes) == 0)
        kernels_->keep({static_cast<const char*>(kernels), bytes});
    for (const auto& each : loaded_) device_->plugin().close_engine(each.second);
}

std::string Engines::name() const {
    return device_->title() + " (" + device_->facts().gpu + ")";
}

editar_engine* Engines::loaded(const std::string& file) {
    const auto found = loaded_.find(file);
    if (found != loaded_.end()) return found->second;
    const std::string content = read_engine(folder_, info_, file, bundle_);
    editar_engine* engine = nullptr;
    if (device_->plugin().load_engine(device_->handle(), content.data(), content.size(), &engine) != 0)
        throw backend_error("the engine " + folder_ + "/" + file + ": " + device_->title() +
                            " could not load it: " + device_->said() + "; run: " + rebuild());
    return loaded_[file] = engine;
}

std::unique_ptr<EngineContext> Engines::context(const EngineShape& shape) {
    const auto found = info_.engines.find(shape.name());
    if (found == info_.engines.end())
        throw backend_error(folder_ + " has no engine " + shape.name() + "; run: " + rebuild());
    const EngineInfo& info = found->second;
    editar_engine* engine = loaded(info.file);
    if (device_->plugin().scratch_bytes(engine) > scratch_bytes_)
        throw backend_error("the engine " + info.file +
                            " needs more memory than its build.json says; run: " + rebuild());
    std::vector<std::vector<int64_t>> sizes;
    std::vector<editar_shape> shapes;
    const PartInfo& part = *bundle_.manifest().part(shape.part);
    for (const TensorInfo& tensor : part.inputs) sizes.push_back(shape.of(tensor));
    for (size_t n = 0; n < sizes.size(); ++n)
        shapes.push_back({part.inputs[n].name.c_str(), sizes[n].data(), static_cast<int32_t>(sizes[n].size())});
    editar_context* context = nullptr;
    if (device_->plugin().open_context(engine, info.profile, shapes.data(), shapes.size(),
                                       scratch_ ? scratch_->at(0) : nullptr, scratch_bytes_, &context) != 0)
        throw backend_error(device_->title() + " could not create a context: " + device_->said());
    return std::make_unique<EngineContext>(*device_, info.file, context);
}

}  // namespace editar
