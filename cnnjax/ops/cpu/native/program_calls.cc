// Networks in use: building them by calls of C, and running them as one call of the FFI.
#include "program.h"

namespace cnnjax {
namespace {

// Programs by number. Numbers are not used again, so that a stale one is an error.
struct Shelf {
  std::mutex mutex;
  uint32_t last = 0;
  std::map<uint32_t, std::shared_ptr<Program>> programs;
};

Shelf& shelf() {
  static Shelf* shelf = new Shelf;
  return *shelf;
}

std::shared_ptr<Program> find(uint32_t number) {
  std::lock_guard<std::mutex> lock(shelf().mutex);
  auto found = shelf().programs.find(number);
  check(found != shelf().programs.end(), "no network number ", number, " in this process");
  return found->second;
}

ffi::Error Run(ffi::AnyBuffer x, ffi::AnyBuffer number, ffi::Result<ffi::AnyBuffer> y) {
  return guarded([&] {
    check_type("number", number.element_type(), ffi::DataType::U32);
    check_shape("number", shape("number", number, 1), {1});
    Turn turn;
    auto program = find(*static_cast<const uint32_t*>(number.untyped_data()));
    Dims in = shape("x", x, 4), out = shape("y", *y, 2);
    const Value &first = program->values().front(), &last = program->values().back();
    check(compute_type("x", x.element_type()) == program->type(), "x is not of the network's type");
    check_type("y", y->element_type(), ffi::DataType::F32);
    check_shape("x", in, {in[0], first.height, first.width, first.channels});
    check_shape("y", out, {in[0], last.size()});
    program->run(turn, x.untyped_data(), y->untyped_data(), in[0]);
  });
}

// Runs a call of C and writes down what it throws; 0 on success, 2 where there is no kernel for it, else 1.
template <class Call>
int guarded_call(char* error, int64_t room, Call&& call) {
  auto failed = [&](const std::exception& exception, int code) {
    std::strncpy(error, exception.what(), room - 1);
    error[room - 1] = 0;
    return code;
  };
  try {
    call();
    return 0;
  } catch (const Unsupported& exception) {
    return failed(exception, 2);
  } catch (const dnnl::error& exception) {
    return failed(exception, exception.status == dnnl_unimplemented ? 2 : 1);
  } catch (const std::exception& exception) {
    return failed(exception, 1);
  }
}

}  // namespace
}  // namespace cnnjax

#pragma GCC visibility push(default)
extern "C" uint32_t cnnjax_program_new(int bfloat16) {
  auto& shelf = cnnjax::shelf();
  std::lock_guard<std::mutex> lock(shelf.mutex);
  shelf.programs[++shelf.last] = std::make_shared<cnnjax::Program>(bfloat16 != 0);
  return shelf.last;
}

// Returns when no call runs the network any more, since each finds it in its own turn: its numbers are no longer read.
extern "C" void cnnjax_program_free(uint32_t number) {
  cnnjax::Turn turn;
  auto& shelf = cnnjax::shelf();
  std::lock_guard<std::mutex> lock(shelf.mutex);
  shelf.programs.erase(number);
}

// Adds a value [h, w, c]; the last of all is the result, float32.
extern "C" int cnnjax_program_value(uint32_t number, const int64_t* shape, int form, char* error, int64_t room) {
  return cnnjax::guarded_call(error, room, [&] {
    cnnjax::find(number)->add_value({shape[0], shape[1], shape[2], static_cast<cnnjax::Form>(form)});
  });
}

// What the codes of the next step stand for: those of x, other and y, and the scales of a product.
extern "C" int cnnjax_program_codes(uint32_t number, const int64_t* is_signed, const float* codings, const float* scales,
                                    int64_t count, char* error, int64_t room) {
  return cnnjax::guarded_call(error, room, [&] {
    auto coding = [&](int i) { return cnnjax::Coding{is_signed[i] != 0, codings[i]}; };
    cnnjax::find(number)->codes() = {scales, count, coding(0), coding(1), coding(2)};
  });
}

// Adds a step: kind, x, other, y, act and its numbers.
extern "C" int cnnjax_program_step(uint32_t number, const int64_t* head, const int64_t* numbers, int64_t count,
                                   float alpha, float beta, const float* weights, int64_t weight_count,
                                   const float* bias, int64_t bias_count, char* error, int64_t room) {
  return cnnjax::guarded_call(error, room, [&] {
    cnnjax::find(number)->add_step({static_cast<cnnjax::Kind>(head[0]), head[1], head[2], head[3],
                                    static_cast<cnnjax::Act>(head[4]), alpha, beta,
                                    cnnjax::Dims(numbers, numbers + count), weights, bias, weight_count, bias_count});
  });
}

// See Program::ranges.
extern "C" int cnnjax_program_ranges(uint32_t number, float* low, float* high, int64_t steps, char* error,
                                     int64_t room) {
  return cnnjax::guarded_call(error, room, [&] { cnnjax::find(number)->ranges(low, high, steps); });
}

// Probabilities float32 [count, K] of pixels [count, h, w, c], see Program::predict.
extern "C" int cnnjax_program_predict(uint32_t number, const uint8_t* pixels, const float* factor, const float* shift,
                                      int64_t count, float* y, char* error, int64_t room) {
  return cnnjax::guarded_call(error, room, [&] {
    cnnjax::Turn turn;
    auto program = cnnjax::find(number);
    program->predict(turn, pixels, factor, shift, count, y);
  });
}

// Whether oneDNN has instructions here that multiply and add 8-bit integers, VNNI or AMX; ONEDNN_MAX_CPU_ISA limits it.
extern "C" int cnnjax_has_int8() {
  auto has = [](dnnl::cpu_isa set) {
    return (static_cast<int>(dnnl::get_effective_cpu_isa()) & static_cast<int>(set)) == static_cast<int>(set);
  };
  return has(dnnl::cpu_isa::avx512_core_vnni) || has(dnnl::cpu_isa::avx2_vnni);
}

extern "C" int cnnjax_program_finish(uint32_t number, char* error, int64_t room) {
  return cnnjax::guarded_call(error, room, [&] {
    auto program = cnnjax::find(number);
    program->finish(static_cast<int64_t>(program->values().size()) - 1);
  });
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(CnnjaxProgram, cnnjax::Run,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());
#pragma GCC visibility pop
