// Base conversion from a set of limbs q_i with product Q to limbs p, in fixed point: see `Backend::base_convert` for the
// formula. Host side: `conversion_table` in src/engine/gpu/tables.rs. The including file declares `conversions`: for each set
//   [width] of ((Q/q_i)^-1 mod q_i, Shoup companion), then
//   [targets] of: (Q mod p, Shoup companion), then [width] of Q/q_i mod p.
// Sets of fewer than `width` limbs are padded.

fn target_words(width: u32, target_index: u32) -> u32 {
    return 2u * width + target_index * (2u + width);
}

fn conversion_words(width: u32, targets: u32) -> u32 {
    return target_words(width, targets);
}

struct Conversion {
    sum: Acc,
    // The fraction sum_i y_i / q_i + 1/2: below 1 in units of 2^-32, and its whole part.
    fraction: u32,
    whole: u32,
}

fn conversion_start() -> Conversion {
    return Conversion(acc_from(0u), 0x80000000u, 0u);
}

// y = x (Q/q)^-1 mod q for a residue x modulo limb `from`, the factor at `at`.
fn conversion_factor(x: u32, from_limb: u32, at: u32) -> u32 {
    let q = limbs[from_limb].p;
    return reduce_2p(mul_shoup(x, vec2<u32>(conversions[at], conversions[at + 1u]), q), q);
}

// Adds y Q/q and y / q. The sum has at most 16 terms before `conversion_reduce`.
fn conversion_add(c: Conversion, y: u32, from_limb: Limb, rest: u32) -> Conversion {
    let low = y * from_limb.mu;
    let high = mul_high(y, from_limb.mu);
    let fraction = c.fraction + ((high << (32u - from_limb.shift)) | (low >> from_limb.shift));
    return Conversion(acc_add_product(c.sum, y, rest), fraction, c.whole + select(0u, 1u, fraction < c.fraction));
}

fn conversion_reduce(c: Conversion, m: Limb) -> Conversion {
    return Conversion(acc_from(acc_reduce(c.sum, m)), c.fraction, c.whole);
}

// The residue modulo the limb `m`, whose constants begin at `target_at`.
fn conversion_end(c: Conversion, target_at: u32, m: Limb) -> u32 {
    let excess = mul_shoup(c.whole, vec2<u32>(conversions[target_at], conversions[target_at + 1u]), m.p);
    return sub_mod(acc_reduce(c.sum, m), reduce_2p(excess, m.p), m.p);
}
