// A device of its own, for machines without an accelerator: memory of the host that says it is elsewhere.
//
// Torch keeps the key PrivateUse1 for devices that it does not know. Here every operation on its tensors runs on host
// tensors that share their memory, and refuses what a GPU refuses: tensors of several devices together, and generators
// of another device. Copies to the host and numbers that are read are counted.
// https://docs.pytorch.org/tutorials/advanced/privateuseone.html

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <set>

using at::Tensor;
using c10::DispatchKey;
using c10::IValue;

namespace {

constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device HOST(c10::DeviceType::CPU), HERE(KIND, 0);

std::map<std::string, int64_t> counts;
std::mutex counting;

void count(const std::string& what) {
  std::lock_guard<std::mutex> lock(counting);
  counts[what]++;
}

// ------------------------------------------------------------------ what torch asks of a device

struct Guard final : public c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = KIND;
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::Stream getDefaultStream(c10::Device d) const override { return getStream(d); }
  c10::Stream exchangeStream(c10::Stream s) const override { return getStream(s.device()); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Generator final : public at::CPUGeneratorImpl {
  at::Generator host = at::detail::createCPUGenerator();
  Generator() {
    device_ = HERE;
    key_set_ = c10::DispatchKeySet(DispatchKey::PrivateUse1);
  }
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
};

const at::Generator& default_generator() {
  static const at::Generator generator(c10::make_intrusive<Generator>());
  return generator;
}

struct Allocator final : public c10::Allocator {
  static void release(void* memory) {
    if (memory) c10::GetDefaultCPUAllocator()->raw_deallocate(memory);
  }
  c10::DataPtr allocate(size_t size) override {
    void* memory = size ? c10::GetDefaultCPUAllocator()->raw_allocate(size) : nullptr;
    return {memory, memory, &release, HERE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t size) const override { std::memcpy(to, from, size); }
};
Allocator allocator;
REGISTER_ALLOCATOR(KIND, &allocator);

struct Hooks : public at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::Generator(c10::make_intrusive<Generator>()); }
  c10::Device getDeviceFromPtr(void*) const override { return HERE; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetDefaultCPUAllocator(); }
  bool isPinnedPtr(const void*) const override { return false; }
};

// ------------------------------------------------------------------ the same memory on both sides

bool is_here(const Tensor& t) { return t.defined() && t.device().type() == KIND; }

c10::Storage storage_on(const c10::Storage& storage, c10::Device device) {
  auto* held = new c10::Storage(storage);
  auto release = [](void* kept) { delete static_cast<c10::Storage*>(kept); };
  c10::DataPtr memory(const_cast<void*>(storage.data()), held, release, device);
  auto* by = device == HOST ? c10::GetDefaultCPUAllocator() : static_cast<c10::Allocator*>(&allocator);
  return c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(memory), by, true);
}

Tensor on_storage(const Tensor& like, c10::Storage storage, DispatchKey key) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_storage_offset(like.storage_offset());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides());
  if (like.is_conj()) made._set_conj(true);
  if (like.is_neg()) made._set_neg(true);
  return made;
}

Tensor to_host(const Tensor& t) { return on_storage(t, storage_on(t.storage(), HOST), DispatchKey::CPU); }
Tensor to_here(const Tensor& t) { return on_storage(t, storage_on(t.storage(), HERE), DispatchKey::PrivateUse1); }

// ------------------------------------------------------------------ operations

struct Call {
  std::string name;
  std::vector<std::pair<Tensor, Tensor>> pairs;  // a tensor, and its memory on the host

  Tensor argument(const Tensor& t) {
    static const std::set<std::string> take_host_indices{
        "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"};
    if (!t.defined()) return t;
    if (!is_here(t)) {
      TORCH_CHECK(t.dim() == 0 || take_host_indices.count(name),
                  "Expected all tensors to be on the same device, but one is on the host (", name, ")");
      return t;
    }
    for (auto& [own, host] : pairs)
      if (own.is_same(t)) return host;
    pairs.emplace_back(t, to_host(t));
    return pairs.back().second;
  }

  IValue argument(const IValue& value) {
    if (value.isTensor()) return argument(value.toTensor());
    if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const auto& t : value.toTensorVector()) list.push_back(argument(t));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor> t : value.toOptionalTensorList())
        list.push_back(t.has_value() && t->defined() ? std::optional<Tensor>(argument(*t)) : std::nullopt);
      return list;
    }
    if (value.isStorage() && value.toStorage().device() == HERE) return storage_on(value.toStorage(), HOST);
    if (value.isDevice() && value.toDevice().type() == KIND) return HOST;
    if (value.isGenerator() && value.toGenerator().defined()) {
      auto generator = value.toGenerator();
      TORCH_CHECK(generator.device().type() == KIND, "Expected a generator of this device (", name, ")");
      return static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->host;
    }
    return value;
  }

  void take_over_resized() {
    for (auto& [own, host] : pairs) {
      bool same = host.sizes() == own.sizes() && host.strides() == own.strides() &&
          host.storage_offset() == own.storage_offset() && host.storage().data() == own.storage().data() &&
          host.storage().nbytes() == own.storage().nbytes();
      if (same) continue;
      auto* implementation = own.unsafeGetTensorImpl();
      implementation->set_storage_keep_dtype(storage_on(host.storage(), HERE));
      implementation->set_storage_offset(host.storage_offset());
      implementation->set_sizes_and_strides(host.sizes(), host.strides());
    }
  }

  Tensor result(const Tensor& t) {
    if (!t.defined() || is_here(t)) return t;
    for (auto& [own, host] : pairs) {
      if (host.is_same(t)) return own;
      if (t.storage().data() && host.storage().data() == t.storage().data())  // a view
        return on_storage(t, c10::Storage(own.storage()), DispatchKey::PrivateUse1);
    }
    return to_here(t);
  }

  IValue result(const IValue& value) {
    if (value.isTensor()) return result(value.toTensor());
    if (!value.isTensorList()) return value;
    std::vector<Tensor> list;
    for (const auto& t : value.toTensorVector()) list.push_back(result(t));
    return list;
  }
};

void on_the_host(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  Call call{operation.schema().operator_name().name, {}};
  const auto given = operation.schema().arguments().size(), returned = operation.schema().returns().size();
  auto arguments = torch::jit::pop(*stack, given);
  for (const auto& value : arguments) stack->push_back(call.argument(value));
  operation.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), stack);
  call.take_over_resized();
  auto results = torch::jit::pop(*stack, returned);
  for (const auto& value : results) stack->push_back(call.result(value));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (is_here(from) && !is_here(to)) count("to the host");
  if (!is_here(from) && is_here(to)) count("from the host");
  at::NoGradGuard no_grad;
  Tensor target = is_here(to) ? to_host(to) : to;
  target.copy_(is_here(from) ? to_host(from) : from);
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (from.sizes() != to.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar number_in(const Tensor& t) {
  count("numbers read");
  return at::_local_scalar_dense(to_host(t));
}

using Sizes = c10::SymIntArrayRef;

Tensor convolution(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, Sizes stride, Sizes padding,
                   Sizes dilation, bool transposed, Sizes output_padding, c10::SymInt groups) {
  std::optional<Tensor> bias;
  if (b.has_value() && b->defined()) bias = to_host(*b);
  return to_here(at::convolution_symint(to_host(x), to_host(w), bias, stride, padding, dilation, transposed,
                                        output_padding, groups).contiguous());
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& g, const Tensor& x, const Tensor& w, Sizes stride, Sizes padding, Sizes dilation, bool transposed,
    Sizes output_padding, c10::SymInt groups, std::array<bool, 3> mask) {
  c10::SymInt outputs = transposed ? w.size(1) * groups : c10::SymInt(w.size(0));
  auto [gx, gw, gb] = at::convolution_backward_symint(
      to_host(g), to_host(x), to_host(w), Sizes({outputs}), stride, padding, dilation, transposed, output_padding,
      groups, mask);
  auto back = [](const Tensor& t) { return t.defined() ? to_here(t) : t; };
  return {back(gx), back(gw), back(gb)};
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("_local_scalar_dense", number_in);
  library.impl("convolution_overrideable", convolution);
  library.impl("convolution_backward_overrideable", convolution_backward);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  module.def("counts", [] { return counts; });
  module.def("reset", [] { counts.clear(); });
  module.def("default_generator", [] { return default_generator(); });
}
