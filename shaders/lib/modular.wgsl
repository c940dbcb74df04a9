// Arithmetic modulo one limb, p < 2^30. "Lazy" values are congruent to their residue but not reduced: each function says
// the range that it takes and gives. Host side: `limb_words` in src/engine/gpu/tables.rs. CPU twin: `arith::Modulus`.

#include "lib/product.wgsl"

struct Limb {
    p: u32,
    // floor(2^32 / p): the Shoup companion of 1.
    one_shoup: u32,
    // 2^32 mod p and its Shoup companion.
    r32: u32,
    r32_shoup: u32,
    // Barrett: with k the bits of p, floor(2^(k + 31) / p) and k - 1.
    mu: u32,
    shift: u32,
    unused_0: u32,
    unused_1: u32,
}

// Up to this many products of residues and one residue fit in an Acc: 16 (2^30 - 1)^2 + 2^30 < 2^64.
const ACC_PRODUCTS: u32 = 16u;

// [0, 2p) to [0, p). The difference wraps to a large word exactly when x < p.
fn reduce_2p(x: u32, p: u32) -> u32 {
    return min(x, x - p);
}

// [0, 4p) to [0, p).
fn reduce_4p(x: u32, p: u32) -> u32 {
    return reduce_2p(min(x, x - 2u * p), p);
}

fn add_mod(a: u32, b: u32, p: u32) -> u32 {
    return reduce_2p(a + b, p);
}

fn sub_mod(a: u32, b: u32, p: u32) -> u32 {
    let d = a - b;
    return min(d, d + p);
}

fn neg_mod(a: u32, p: u32) -> u32 {
    return select(p - a, 0u, a == 0u);
}

// Any word times a constant w < p given as (w, floor(w 2^32 / p)): lazy, in [0, 2p) (Shoup; Harvey 2014).
fn mul_shoup(a: u32, w: vec2<u32>, p: u32) -> u32 {
    return a * w.x - mul_high(a, w.y) * p;
}

// Any word to [0, 2p).
fn reduce_word_lazy(a: u32, m: Limb) -> u32 {
    return a - mul_high(a, m.one_shoup) * m.p;
}

// Product of two residues, reduced. Barrett: the quotient is short by at most 2, so the remainder is below 3p.
fn mul_mod(a: u32, b: u32, m: Limb) -> u32 {
    let low = a * b;
    let high = mul_high(a, b);
    let top = (high << (32u - m.shift)) | (low >> m.shift);
    return reduce_4p(low - mul_high(top, m.mu) * m.p, m.p);
}

// Any 64-bit value, given as (low, high), to [0, p).
fn reduce_words(words: vec2<u32>, m: Limb) -> u32 {
    let low = reduce_word_lazy(words.x, m);
    let high = mul_shoup(words.y, vec2<u32>(m.r32, m.r32_shoup), m.p);
    return reduce_4p(low + high, m.p);
}

// Any 64-bit value in two's complement, given as (low, high), to [0, p).
fn reduce_signed(words: vec2<u32>, m: Limb) -> u32 {
    let negative = (words.y >> 31u) != 0u;
    let low = ~words.x + 1u;
    let negated = vec2<u32>(low, ~words.y + select(0u, 1u, low == 0u));
    let r = reduce_words(select(words, negated, negative), m);
    return select(r, neg_mod(r, m.p), negative);
}

fn acc_reduce(acc: Acc, m: Limb) -> u32 {
    return reduce_words(acc_words(acc), m);
}
