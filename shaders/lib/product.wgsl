// Double-width products of 32-bit words, in two forms with the same names:
// `u64`, which needs the SHADER_INT64 feature and keeps 64-bit values in registers only, and the 16-bit split in plain WGSL.

#ifdef FORM_U64

// High word of a * b.
fn mul_high(a: u32, b: u32) -> u32 {
    return u32((u64(a) * u64(b)) >> 32u);
}

// A sum of products below 2^64.
alias Acc = u64;

fn acc_from(x: u32) -> Acc {
    return u64(x);
}

fn acc_add_product(acc: Acc, a: u32, b: u32) -> Acc {
    return acc + u64(a) * u64(b);
}

// (low word, high word)
fn acc_words(acc: Acc) -> vec2<u32> {
    return vec2<u32>(u32(acc & 0xfffffffflu), u32(acc >> 32u));
}

#else

fn mul_high(a: u32, b: u32) -> u32 {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    // Neither sum overflows: (2^16 - 1)^2 + 2 * (2^16 - 1) = 2^32 - 1.
    let middle = a1 * b0 + ((a0 * b0) >> 16u);
    let carried = a0 * b1 + (middle & 0xffffu);
    return a1 * b1 + (middle >> 16u) + (carried >> 16u);
}

alias Acc = vec2<u32>;

fn acc_from(x: u32) -> Acc {
    return vec2<u32>(x, 0u);
}

fn acc_add_product(acc: Acc, a: u32, b: u32) -> Acc {
    let low = acc.x + a * b;
    return vec2<u32>(low, acc.y + mul_high(a, b) + select(0u, 1u, low < acc.x));
}

fn acc_words(acc: Acc) -> vec2<u32> {
    return acc;
}

#endif
