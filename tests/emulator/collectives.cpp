// What the lanes of a warp compute together, as pure functions of what each brings.
#include "machine.h"
#include <algorithm>
#include <bit>
#include <cmath>

namespace emulator {
namespace {

template <class T> const T& at(const void* p) { return *(const T*)p; }

template <class F> void each(u32 lanes, F visit) {
    for (; lanes != 0; lanes &= lanes - 1) visit((u32)std::countr_zero(lanes));
}

template <class F> void reduce_lanes(u32 arrived, const void* const (&in)[32], void* const (&out)[32], F join) {
    u32 result = at<u32>(in[std::countr_zero(arrived)]);
    each(arrived & (arrived - 1), [&](u32 lane) { result = join(result, at<u32>(in[lane])); });
    each(arrived, [&](u32 lane) { *(u32*)out[lane] = result; });
}

// The lane that `lane` reads from.
u32 source(Operation operation, u32 lane, const Shuffle& request) {
    const u32 width = request.width;
    const u32 base = lane & ~(width - 1);
    const u32 offset = lane & (width - 1);
    const u32 argument = request.argument;
    switch (operation) {
        case Operation::Shuffle: return base + (argument & (width - 1));
        case Operation::ShuffleUp: return offset >= argument ? lane - argument : lane;
        case Operation::ShuffleDown: return argument < width - offset ? lane + argument : lane;
        default: return (lane ^ argument) < base + width ? lane ^ argument : lane;
    }
}

void shuffle_lanes(Operation operation, u32 arrived, const void* const (&in)[32], void* const (&out)[32], Site site) {
    each(arrived, [&](u32 lane) {
        const Shuffle& request = at<Shuffle>(in[lane]);
        if (!std::has_single_bit(request.width) || request.width > 32) fail(site, "a shuffle of width %u", request.width);
        const u32 from = source(operation, lane, request);
        if (!(arrived >> (from & 31) & 1)) fail(site, "lane %u reads lane %u in a shuffle in which only lanes %08x take part", lane, from, arrived);
        *(u64*)out[lane] = at<Shuffle>(in[from]).value;
    });
}

void match_lanes(u32 arrived, const void* const (&in)[32], void* const (&out)[32]) {
    each(arrived, [&](u32 lane) {
        u32 equal = 0;
        each(arrived, [&](u32 other) { equal |= (u32)(at<u64>(in[lane]) == at<u64>(in[other])) << other; });
        *(u32*)out[lane] = equal;
    });
}

// Lane l gets values 2(l%4) and 2(l%4)+1 of row l/4 of each block; transposed, of column l/4.
void load_rows(bool transposed, const void* const (&in)[32], void* const (&out)[32]) {
    for (u32 lane = 0; lane < 32; ++lane) {
        for (u32 b = 0; b < 4; ++b) {
            const u32 major = lane / 4;
            const u32 minor = lane % 4 * 2;
            const u16 low = transposed ? at<EmulatorRow>(in[b * 8 + minor]).values[major] : at<EmulatorRow>(in[b * 8 + major]).values[minor];
            const u16 high = transposed ? at<EmulatorRow>(in[b * 8 + minor + 1]).values[major] : at<EmulatorRow>(in[b * 8 + major]).values[minor + 1];
            ((u32*)out[lane])[b] = (u32)low | (u32)high << 16;
        }
    }
}

float widen(u32 bits) { return std::bit_cast<float>(bits << 16); }

// A sum of TOGETHER products and what there is as tensor cores are known to make it, which nothing specifies: every operand is cut
// off at the last bit that a binary32 as large as the largest of them has, and so is the result.
constexpr u32 TOGETHER = 8;
template <class F> float truncated_sum(float before, F product) {
    double largest = std::fabs((double)before);
    for (u32 t = 0; t < TOGETHER; ++t) largest = std::max(largest, std::fabs(product(t)));
    if (largest == 0 || !std::isfinite(largest)) {
        for (u32 t = 0; t < TOGETHER; ++t) before += (float)product(t);
        return before;
    }
    const double bit = std::ldexp(1.0, std::ilogb(largest) - 23);
    double sum = std::trunc(before / bit);
    for (u32 t = 0; t < TOGETHER; ++t) sum += std::trunc(product(t) / bit);
    const float nearest = (float)(sum * bit);
    return std::fabs((double)nearest) > std::fabs(sum * bit) ? std::nextafter(nearest, 0.0f) : nearest;
}

// The layouts of PTX's mma.m16n8k16: with g = lane/4 and t = lane%4, a lane holds A[g or g+8][2t.., 2t+8..],
// B[2t.., 2t+8..][g] and D[g or g+8][2t..].
void multiply(const void* const (&in)[32], void* const (&out)[32]) {
    float a[16][16], b[16][8], d[16][8];
    for (u32 lane = 0; lane < 32; ++lane) {
        const Product& p = at<Product>(in[lane]);
        const u32 g = lane / 4;
        const u32 t = lane % 4 * 2;
        for (u32 half = 0; half < 2; ++half) {
            for (u32 q = 0; q < 4; ++q) a[g + q % 2 * 8][t + q / 2 * 8 + half] = widen(p.a[q] >> 16 * half & 0xffffu);
            for (u32 q = 0; q < 2; ++q) b[t + q * 8 + half][g] = widen(p.b[q] >> 16 * half & 0xffffu);
            for (u32 q = 0; q < 2; ++q) d[g + q * 8][t + half] = p.d[q * 2 + half];
        }
    }
    static const bool truncates = setting("EMULATOR_TRUNCATE", 0) != 0;
    for (u32 i = 0; i < 16; ++i) {
        for (u32 k = 0; k < 16; ++k) {
            for (u32 j = 0; j < 8; ++j) {
                if (!truncates) d[i][j] += a[i][k] * b[k][j];
                else if (k % TOGETHER == 0) d[i][j] = truncated_sum(d[i][j], [&](u32 t) { return (double)a[i][k + t] * b[k + t][j]; });
            }
        }
    }
    for (u32 lane = 0; lane < 32; ++lane) {
        float* mine = (float*)out[lane];
        for (u32 q = 0; q < 4; ++q) mine[q] = d[lane / 4 + q / 2 * 8][lane % 4 * 2 + q % 2];
    }
}

}  // namespace

void evaluate(Operation operation, u32 arrived, const void* const (&in)[32], void* const (&out)[32], Site site) {
    switch (operation) {
        case Operation::Sync: return;
        case Operation::Ballot: {
            u32 votes = 0;
            each(arrived, [&](u32 lane) { votes |= at<u32>(in[lane]) << lane; });
            return each(arrived, [&](u32 lane) { *(u32*)out[lane] = votes; });
        }
        case Operation::Shuffle:
        case Operation::ShuffleXor:
        case Operation::ShuffleUp:
        case Operation::ShuffleDown: return shuffle_lanes(operation, arrived, in, out, site);
        case Operation::Add: return reduce_lanes(arrived, in, out, [](u32 x, u32 y) { return x + y; });
        case Operation::Min: return reduce_lanes(arrived, in, out, [](u32 x, u32 y) { return x < y ? x : y; });
        case Operation::Max: return reduce_lanes(arrived, in, out, [](u32 x, u32 y) { return x > y ? x : y; });
        case Operation::And: return reduce_lanes(arrived, in, out, [](u32 x, u32 y) { return x & y; });
        case Operation::Or: return reduce_lanes(arrived, in, out, [](u32 x, u32 y) { return x | y; });
        case Operation::Xor: return reduce_lanes(arrived, in, out, [](u32 x, u32 y) { return x ^ y; });
        case Operation::Match: return match_lanes(arrived, in, out);
        case Operation::Load:
        case Operation::LoadTransposed:
        case Operation::Multiply: break;
    }
    if (arrived != 0xffffffffu) fail(site, "only lanes %08x of the warp take part in an operation of the whole warp", arrived);
    if (operation == Operation::Multiply) multiply(in, out);
    else load_rows(operation == Operation::LoadTransposed, in, out);
}

}  // namespace emulator
