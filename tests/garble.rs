//! Every gadget against the integer functions, in the clear and garbled, and the number of its AND gates.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy does not recognise outside test functions")]

use heliostat::arith::ShareModulus;
use heliostat::arith::fixed::{
    Activation, ActivationTable, ExpTable, Piecewise, PowerTable, RowPower, TanhTable, argmax, round_shift, saturate,
};
use heliostat::mpc::block::Block;
use heliostat::mpc::garble::half_gates::{GarbleError, Garbling, GateKey, LabelSeed, evaluate_chunk};
use heliostat::mpc::garble::{Circuit, Gadget};
use heliostat::mpc::prg::Prg;
use proptest::prelude::*;

/// A small generator (splitmix64): the tests need spread, not secrecy.
struct Spread(u64);

impl Spread {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `lo..=hi`.
    fn within(&mut self, lo: i128, hi: i128) -> i128 {
        lo + (u128::from(self.next()) % (hi - lo + 1) as u128) as i128
    }
}

fn ring(bits: u32) -> ShareModulus {
    ShareModulus::pow2(bits).unwrap()
}

fn residue(t: ShareModulus, x: i128) -> u64 {
    t.from_signed(x as i64)
}

/// The inputs of a gadget: shares of `xs` by random masks, and random output masks.
struct Shared {
    garbler: Vec<u64>,
    evaluator: Vec<u64>,
    masks: Vec<u64>,
}

impl Shared {
    fn new(g: &Gadget, xs: &[i128], rng: &mut Spread) -> Self {
        let edge = |rng: &mut Spread| match rng.next() % 8 {
            0 => 0,
            1 => u64::MAX,
            _ => rng.next(),
        };
        let evaluator: Vec<u64> = xs.iter().map(|_| g.ring_in().reduce(edge(rng))).collect();
        let words = xs.len() / g.cols() * g.out_cols();
        let masks = (0..words).map(|_| g.ring_out().reduce(edge(rng))).collect();
        let garbler = xs.iter().zip(&evaluator).map(|(&x, &e)| g.ring_in().sub(residue(g.ring_in(), x), e)).collect();
        Self { garbler, evaluator, masks }
    }
}

/// Words of 64 instances from packed bits of whole instances.
fn transpose(packed: &[u8], bits: usize, first: usize, count: usize) -> Vec<u64> {
    (0..bits)
        .map(|b| {
            (0..count).fold(0, |acc, i| {
                let at = (first + i) * bits + b;
                acc | u64::from(packed[at / 8] >> (at % 8) & 1) << i
            })
        })
        .collect()
}

/// Evaluates in the clear and compares with `f` on whole instances.
fn check(g: &Gadget, xs: &[i128], rng: &mut Spread, f: impl Fn(&[i128]) -> Vec<i128>) {
    let s = Shared::new(g, xs, rng);
    check_shares(g, &s, xs, f);
}

fn check_shares(g: &Gadget, s: &Shared, xs: &[i128], f: impl Fn(&[i128]) -> Vec<i128>) {
    let cols = g.cols();
    let count = xs.len() / cols;
    let (garbler, evaluator) = (g.garbler_bits(&s.garbler).unwrap(), g.evaluator_bits(&s.evaluator).unwrap());
    let c = g.circuit();
    let width = g.ring_out().bits() as usize;
    for first in (0..count).step_by(64) {
        let some = (count - first).min(64);
        let out = c
            .eval64(
                &transpose(&garbler, c.garbler_inputs(), first, some),
                &transpose(&evaluator, c.evaluator_inputs(), first, some),
            )
            .unwrap();
        for i in 0..some {
            let at = (first + i) * cols..(first + i + 1) * cols;
            let expected = f(&xs[at.clone()]);
            for j in 0..g.out_cols() {
                let y = (0..width).fold(0, |acc, b| acc | (out[j * width + b] >> i & 1) << b);
                assert_eq!(y, residue(g.ring_out(), expected[j]), "x = {:?}, element {j}", &xs[at.clone()]);
            }
        }
    }
}

/// Values of the signed ring, without those that the rounding offset carries over its end: ends, zero, around multiples
/// of `2^cell` and random ones of all magnitudes.
fn inputs(g: &Gadget, cell: u32, rng: &mut Spread) -> Vec<i128> {
    let bits = g.ring_in().bits();
    let (lo, hi) = (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1 - g.garbler_offset() as i128);
    let mut xs = vec![0, -1, 1, lo, lo + 1, hi, hi - 1, hi / 2, lo / 2];
    for k in -130..=130i128 {
        for d in -1..=1 {
            xs.push(k * (1 << cell) + d);
            xs.push(k * (1 << cell) + d - g.garbler_offset() as i128);
        }
    }
    for _ in 0..2000 {
        let low = rng.next() % u64::from(bits);
        xs.push(rng.within(lo, hi) >> low);
    }
    for _ in 0..2000 {
        xs.push(rng.within(lo, hi));
    }
    xs.retain(|&x| (lo..=hi).contains(&x));
    xs
}

fn truncation(ring_in: u32, shift: u32, ring_out: u32) -> Gadget {
    Gadget::truncate(ring(ring_in), shift, ring(ring_out)).unwrap()
}

fn activation(f: &ActivationTable, ring_in: u32, ring_out: u32) -> Gadget {
    Gadget::activation(f, ring(ring_in), ring(ring_out)).unwrap()
}

fn gelu(in_frac: u32, out_frac: u32, error_ppm: u32) -> ActivationTable {
    ActivationTable { activation: Activation::Gelu, in_frac, out_frac, range_log2: 2, error_ppm }
}

fn exp(in_frac: u32, frac_bits: u32, out_frac: u32, error_ppm: u32) -> ExpTable {
    ExpTable { in_frac, frac_bits, out_frac, error_ppm }
}

fn power(
    power: RowPower,
    numerator: f64,
    fracs: (u32, u32),
    min: u32,
    max: u32,
    error_ppm: u32,
    rings: (u32, u32),
) -> (PowerTable, Piecewise, Gadget) {
    let f = PowerTable::new(power, numerator, fracs.0, fracs.1, min, max, error_ppm).unwrap();
    let t = f.pieces(numerator, fracs.0, fracs.1);
    let g = Gadget::power(&f, &t, ring(rings.0), ring(rings.1)).unwrap();
    (f, t, g)
}

/// Communication and time are proportional to these numbers: a change must be meant. A projection's bytes count as well,
/// 32 of them like an AND gate.
#[test]
fn and_counts() {
    let found = |g: &Gadget| (g.circuit().and_count(), g.circuit().projection_bytes());
    let pin = |name: &str, g: &Gadget, ands: usize, bytes: usize| assert_eq!(found(g), (ands, bytes), "{name}");
    // Adding the shares is all; a result's bits leave as up to 4 bytes each.
    pin("truncate 32 -> 32", &truncation(32, 12, 32), 31, 64);
    pin("truncate 32 -> 32, none dropped", &truncation(32, 0, 32), 31, 80);
    pin("truncate 48 -> 32", &truncation(48, 24, 32), 47, 72);
    pin("truncate 32 -> 48", &truncation(32, 12, 48), 31, 104);
    // Only 28 bits of the sum are needed.
    pin("truncate 48 -> 20", &truncation(48, 8, 20), 27, 36);
    pin("saturate 32 to 16, 12 dropped", &Gadget::saturate(ring(32), 12, 16, ring(32)).unwrap(), 31 + 3 + 15, 56);
    pin(
        "modulo a prime of 38 bits",
        &Gadget::from_prime(ShareModulus::prime((1 << 38) - 45).unwrap(), ring(32)).unwrap(),
        38,
        84,
    );
    let relu = |in_frac| ActivationTable { activation: Activation::Relu, ..gelu(in_frac, 12, 6000) };
    pin("ReLU 32 -> 32", &activation(&relu(12), 32, 32), 31 + 1, 164);
    pin("ReLU 32 -> 32, 12 dropped", &activation(&relu(24), 32, 32), 31 + 1, 128);
    // Shares, lowest bit, range; the rest are cells and slopes.
    pin("GELU 32 -> 32 within 0.015", &activation(&gelu(24, 12, 15_000), 32, 32), 31 + 1 + 4 + 14, 182);
    pin("GELU 32 -> 32 within 0.006", &activation(&gelu(24, 12, 6_000), 32, 32), 31 + 1 + 4 + 22, 206);
    pin("GELU 32 -> 32 within 0.003", &activation(&gelu(24, 12, 3_000), 32, 32), 31 + 1 + 4 + 32, 226);
    pin("GELU 32 -> 32 within 0.001", &activation(&gelu(24, 12, 1_000), 32, 32), 31 + 1 + 4 + 80, 238);
    let tanh = TanhTable { in_frac: 24, out_frac: 12, range_log2: 2, error_ppm: 3_000 };
    pin("tanh 32 -> 32 within 0.003", &Gadget::tanh(&tanh, ring(32), ring(32)).unwrap(), 81, 143);
    // Per score 133 and the 20 of a comparison, of which there is one fewer.
    for (cols, ands) in [(32, 32 * 134 - 20), (128, 128 * 134 - 20)] {
        let g = Gadget::exp_row(&exp(20, 8, 11, 5_000), cols, ring(30), ring(40)).unwrap();
        pin("exp", &g, ands, 56 * cols);
    }
    pin("reciprocal", &power(RowPower::Reciprocal, 1.0, (12, 16), 12, 19, 1500, (40, 40)).2, 198, 75);
    pin("inverse root", &power(RowPower::InverseSqrt, 128f64.sqrt(), (24, 18), 20, 43, 1500, (45, 45)).2, 318, 111);
    pin("argmax of 10", &Gadget::argmax(10, ring(32), ring(32)).unwrap(), 861, 16);
}

/// What is asked of the garbled layers at 32-bit shares, an AND gate for each begun 32 bytes of projections included.
#[test]
fn bars() {
    let cost = |g: &Gadget| g.circuit().and_count() + g.circuit().projection_bytes().div_ceil(32);
    assert!(cost(&truncation(32, 12, 32)) <= 62);
    assert!(cost(&activation(&ActivationTable { activation: Activation::Relu, ..gelu(24, 12, 1) }, 32, 32)) <= 95);
    assert!(cost(&activation(&gelu(24, 12, 6_000), 32, 32)) <= 200);
    let scores = Gadget::exp_row(&exp(20, 8, 11, 5_000), 128, ring(32), ring(40)).unwrap();
    assert!(cost(&scores) <= 250 * 128);
    // Of a value of LayerNorm two truncations and a part of its row's inverse root are garbled; products are on shares.
    let root = power(RowPower::InverseSqrt, 128f64.sqrt(), (24, 18), 4, 31, 1500, (32, 32)).2;
    let both = cost(&truncation(32, 12, 32)) + cost(&truncation(32, 14, 32));
    assert!(both * 128 + cost(&root) <= 160 * 128);
}

#[test]
fn truncation_in_the_clear() {
    let mut rng = Spread(1);
    for (a, s, b) in [
        (32, 12, 32),
        (32, 0, 32),
        (48, 24, 32),
        (32, 31, 64),
        (64, 63, 64),
        (64, 12, 64),
        (48, 8, 20),
        (1, 0, 1),
        (2, 1, 1),
    ] {
        let g = truncation(a, s, b);
        let xs = inputs(&g, s, &mut rng);
        check(&g, &xs, &mut rng, |x| vec![round_shift(x[0], s)]);
    }
}

#[test]
fn activations_in_the_clear() {
    let mut rng = Spread(2);
    for f in [
        gelu(24, 12, 6000),
        gelu(24, 12, 15_000),
        gelu(20, 12, 1000),
        gelu(12, 12, 5000),
        gelu(5, 5, 100),
        gelu(24, 3, 6000),
    ] {
        for kind in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            let f = ActivationTable { activation: kind, ..f.clone() };
            let pieces = f.pieces();
            for (a, b) in [(32, 32), (40, 32), (28, 45), (26, 9), (64, 64)] {
                let g = activation(&f, a, b);
                let xs = inputs(&g, f.in_frac.saturating_sub(6), &mut rng);
                check(&g, &xs, &mut rng, |x| vec![f.eval(pieces.as_ref(), x[0])]);
            }
        }
    }
}

#[test]
fn exp_rows_in_the_clear() {
    let mut rng = Spread(3);
    for (in_frac, frac_bits, out_frac, error_ppm, a, b) in [
        (20, 7, 12, 5000, 30, 40),
        (20, 8, 12, 2000, 28, 40),
        (18, 6, 11, 8000, 36, 32),
        (8, 8, 15, 100, 14, 20),
        (10, 4, 7, 20_000, 32, 8),
        (9, 7, 12, 1000, 8, 20),
        (9, 7, 12, 1000, 6, 20),
        (9, 0, 0, 1000, 12, 3),
    ] {
        let f = exp(in_frac, frac_bits, out_frac, error_ppm);
        let table = f.table();
        for cols in [1usize, 2, 3, 8, 13] {
            let g = Gadget::exp_row(&f, cols, ring(a), ring(b)).unwrap();
            let (lo, hi) = (-(1i128 << (a - 1)), (1i128 << (a - 1)) - 1 - g.garbler_offset() as i128);
            let mut xs = Vec::new();
            for row in 0..512 {
                // Equal scores, close ones, ones that differ in the range of the shifter, any; and masked columns.
                let centre = rng.within(lo, hi);
                let spread = match row % 5 {
                    0 => 0,
                    1 => 1 << f.shift(),
                    2 => 3 << in_frac,
                    3 => 20 << in_frac,
                    _ => hi,
                };
                for j in 0..cols {
                    let x = centre + rng.within(-spread, spread);
                    xs.push(if row % 3 == 0 && j > cols / 2 { lo } else { x.clamp(lo, hi) });
                }
            }
            check(&g, &xs, &mut rng, |x| f.eval_row(&table, x));
        }
    }
}

#[test]
fn powers_in_the_clear() {
    let mut rng = Spread(4);
    for (f, t, g) in [
        power(RowPower::Reciprocal, 1.0, (12, 16), 12, 19, 1500, (40, 40)),
        power(RowPower::Reciprocal, 1.0, (12, 20), 12, 21, 700, (22, 32)),
        power(RowPower::Reciprocal, 3.5, (8, 12), 5, 5, 20_000, (16, 20)),
        power(RowPower::InverseSqrt, 128f64.sqrt(), (24, 18), 20, 43, 1500, (45, 45)),
        power(RowPower::InverseSqrt, 384f64.sqrt(), (24, 14), 4, 47, 700, (48, 24)),
        power(RowPower::InverseSqrt, 1.0, (10, 12), 0, 12, 3000, (20, 20)),
        power(RowPower::InverseSqrt, 1.0, (0, 40), 0, 63, 4000, (64, 64)),
        power(RowPower::Reciprocal, 1.0, (12, 16), 12, 19, 1500, (14, 40)),
    ] {
        let bits = g.ring_in().bits();
        let full = (1i128 << bits) - 1;
        let mut xs = vec![0, 1, full, full - 1];
        for k in 0..bits {
            for d in -1..=1 {
                xs.push(((1i128 << k) + d) & full);
                xs.push(((3i128 << k) + d) & full);
            }
            for _ in 0..60 {
                xs.push((rng.within(0, full) >> k) & full);
            }
        }
        check(&g, &xs, &mut rng, |x| vec![i128::from(f.eval(&t, x[0] as u64))]);
    }
}

#[test]
fn tanh_in_the_clear() {
    let mut rng = Spread(5);
    for (in_frac, out_frac, range_log2, error_ppm, a, b) in
        [(24, 12, 2, 3000, 32, 32), (20, 12, 2, 1000, 44, 20), (24, 12, 2, 3000, 20, 13), (6, 3, 2, 100, 64, 64)]
    {
        let f = TanhTable { in_frac, out_frac, range_log2, error_ppm };
        let pieces = f.pieces();
        let g = Gadget::tanh(&f, ring(a), ring(b)).unwrap();
        let xs = inputs(&g, in_frac.saturating_sub(6), &mut rng);
        check(&g, &xs, &mut rng, |x| vec![f.eval(&pieces, x[0])]);
    }
}

#[test]
fn saturation_in_the_clear() {
    let mut rng = Spread(6);
    for (a, s, bits, b) in
        [(32, 12, 16, 32), (32, 0, 32, 40), (24, 4, 1, 8), (40, 8, 64, 40), (64, 3, 20, 64), (8, 7, 1, 3)]
    {
        let g = Gadget::saturate(ring(a), s, bits, ring(b)).unwrap();
        let mut xs = inputs(&g, s, &mut rng);
        for edge in [-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1] {
            xs.extend(
                (-3..=3)
                    .map(|d| (edge + d) << s)
                    .filter(|&x| (-(1i128 << (a - 1))..(1i128 << (a - 1)) - (1 << s)).contains(&x)),
            );
        }
        check(&g, &xs, &mut rng, |x| vec![saturate(round_shift(x[0], s), bits)]);
    }
}

#[test]
fn argmax_in_the_clear() {
    let mut rng = Spread(7);
    for (a, cols, b) in [(32, 10, 32), (5, 13, 4), (64, 2, 9), (16, 1, 8), (3, 33, 20)] {
        let g = Gadget::argmax(cols, ring(a), ring(b)).unwrap();
        let (lo, hi) = (-(1i128 << (a - 1)), (1i128 << (a - 1)) - 1);
        let xs: Vec<i128> = (0..300 * cols)
            .map(|i| match i / cols % 4 {
                0 => rng.within(lo, hi),
                1 => lo,
                2 => hi - (rng.next() % 2) as i128,
                _ => rng.within(-1, 1),
            })
            .collect();
        check(&g, &xs, &mut rng, |x| vec![argmax(x) as i128]);
    }
}

/// Shares modulo an odd number.
fn shared_modulo(t: u64, xs: &[i128], ring_out: ShareModulus, rng: &mut Spread) -> Shared {
    let edge = |rng: &mut Spread| match rng.next() % 8 {
        0 => 0,
        1 => t - 1,
        _ => rng.next() % t,
    };
    let evaluator: Vec<u64> = xs.iter().map(|_| edge(rng)).collect();
    let garbler = xs.iter().zip(&evaluator).map(|(x, &e)| (x - i128::from(e)).rem_euclid(t.into()) as u64).collect();
    Shared { garbler, evaluator, masks: xs.iter().map(|_| ring_out.reduce(rng.next())).collect() }
}

#[test]
fn shares_modulo_a_prime() {
    let mut rng = Spread(8);
    for (t, b) in [((1u64 << 38) - 45, 32), ((1 << 38) - 45, 64), (3, 8), (65537, 16), (65537, 40), ((1 << 61) - 1, 64)]
    {
        let modulus = ShareModulus::prime(t).unwrap();
        let g = Gadget::from_prime(modulus, ring(b)).unwrap();
        let half = i128::from(t / 2);
        let mut xs = vec![0, 1, -1, half, -half, half - 1, 1 - half];
        xs.extend((0..1000).map(|_| rng.within(-half, half) >> (rng.next() % 40)));
        let s = shared_modulo(t, &xs, g.ring_out(), &mut rng);
        check_shares(&g, &s, &xs, |x| vec![x[0]]);
        assert!(garbled_shares(&g, &s, 9) == xs.iter().map(|&x| residue(g.ring_out(), x)).collect::<Vec<_>>());
        if t > 1 << 12 {
            let shift = 9;
            let g = Gadget::truncate(modulus, shift, ring(b)).unwrap();
            xs.retain(|x| *x + (1 << (shift - 1)) <= half);
            let s = shared_modulo(t, &xs, g.ring_out(), &mut rng);
            check_shares(&g, &s, &xs, |x| vec![round_shift(x[0], shift)]);
        }
    }
    let t = ShareModulus::prime((1 << 38) - 45).unwrap();
    assert_eq!(Gadget::truncate(t, 12, ring(32)).unwrap().circuit().and_count(), 2 * 38 - 1);
    assert_eq!(Gadget::truncate(t, 0, ring(32)).unwrap().circuit().and_count(), 38);
}

/// Every function between rings of both kinds, in the clear and garbled.
#[test]
fn rings_of_both_kinds() {
    let mut rng = Spread(21);
    let slots = |bits| ShareModulus::slots(bits, 16384).unwrap();
    let pairs = [(ring(33), slots(34)), (slots(34), ring(33)), (slots(34), slots(31)), (slots(40), slots(60))];
    for (from, to) in pairs {
        let check = |g: &Gadget, xs: &[i128], f: &dyn Fn(&[i128]) -> Vec<i128>| {
            check_shares(g, &Shared::new(g, xs, &mut Spread(22)), xs, f);
            check_garbled(g, xs, 23, f);
        };
        // Results stay below 2^29, which every output ring holds.
        let mut signed = |count: usize, bits: u32| -> Vec<i128> {
            (0..count).map(|_| rng.within(-(1 << bits), 1 << bits) >> (rng.next() % u64::from(bits))).collect()
        };
        let xs = [signed(40, 31), vec![0, 1, -1, 7, -8, 8, -9, (1 << 31) - 1, -(1 << 31)]].concat();
        check(&Gadget::truncate(from, 4, to).unwrap(), &xs, &|x| vec![round_shift(x[0], 4)]);
        check(&Gadget::truncate(from, 0, to).unwrap(), &signed(40, 29), &|x| vec![x[0]]);
        check(&Gadget::saturate(from, 4, 20, to).unwrap(), &xs, &|x| vec![saturate(round_shift(x[0], 4), 20)]);
        for (f, xs) in [(gelu(22, 10, 6000), signed(60, 31)), (gelu(22, 10, 6000), signed(40, 25))] {
            let pieces = f.pieces();
            check(&Gadget::activation(&f, from, to).unwrap(), &xs, &|x| vec![f.eval(pieces.as_ref(), x[0])]);
        }
        let f = TanhTable { in_frac: 20, out_frac: 12, range_log2: 2, error_ppm: 3000 };
        let pieces = f.pieces();
        check(&Gadget::tanh(&f, from, to).unwrap(), &signed(80, 23), &|x| vec![f.eval(&pieces, x[0])]);
        let f = exp(18, 8, 11, 5000);
        let table = f.table();
        check(&Gadget::exp_row(&f, 5, from, to).unwrap(), &signed(40, 25), &|x| f.eval_row(&table, x));
        for (p, numerator, (low, high)) in
            [(RowPower::InverseSqrt, 128f64.sqrt(), (18, 30)), (RowPower::Reciprocal, 1.0, (11, 18))]
        {
            let f = PowerTable::new(p, numerator, 11, 15, low, high, 1500).unwrap();
            let pieces = f.pieces(numerator, 11, 15);
            let xs: Vec<i128> = signed(60, high).iter().map(|x| x.abs().clamp(1 << low, (2 << high) - 1)).collect();
            let g = Gadget::power(&f, &pieces, from, to).unwrap();
            check(&g, &xs, &|x| vec![i128::from(f.eval(&pieces, x[0] as u64))]);
        }
        let xs = signed(35, 31);
        check(&Gadget::argmax(7, from, to).unwrap(), &xs, &|x| vec![argmax(x) as i128]);
    }
    // The re-masking of a reply takes any word from the other party.
    let g = Gadget::truncate(ring(20), 4, slots(20)).unwrap();
    assert!(g.output_shares(&[0xff; 5], &[0xff; 5], 2).unwrap().iter().all(|&x| x <= slots(20).largest()));
}

/// Garbles and evaluates through half-gates; returns the new shares of both parties' sum.
fn garbled(g: &Gadget, xs: &[i128], seed: u64) -> Vec<u64> {
    let s = Shared::new(g, xs, &mut Spread(seed));
    garbled_shares(g, &s, seed)
}

fn garbled_shares(g: &Gadget, s: &Shared, seed: u64) -> Vec<u64> {
    let count = s.garbler.len() / g.cols();
    let session = Session::new(&mut Spread(seed));
    let (evaluator_zero, evaluator_labels) =
        session.transfer(g.circuit(), &g.evaluator_bits(&s.evaluator).unwrap(), count);
    let garbling = Garbling::new(g.circuit(), session.delta, session.key, &session.labels).unwrap();
    let chunk = garbling.garble_chunk(&evaluator_zero, count).unwrap();
    assert_eq!(chunk.tables.len(), (g.circuit().and_count() * 32 + g.circuit().projection_bytes()) * count);
    let garbler_labels = garbling.garbler_labels(&g.garbler_bits(&s.garbler).unwrap(), count).unwrap();
    let values =
        evaluate_chunk(g.circuit(), session.key, &chunk.tables, &evaluator_labels, &garbler_labels, count).unwrap();
    let reply = g.reply(&values, &s.masks).unwrap();
    let new = g.output_shares(&reply, &chunk.masks, count).unwrap();
    new.iter().zip(&s.masks).map(|(&x, &m)| g.ring_out().add(x, m)).collect()
}

/// What a protocol would have agreed on before.
struct Session {
    delta: Block,
    key: GateKey,
    labels: LabelSeed,
    transfers: Block,
}

impl Session {
    fn new(rng: &mut Spread) -> Self {
        let mut block = || Block(u128::from(rng.next()) << 64 | u128::from(rng.next()));
        Self {
            delta: block().with_lsb_set(),
            key: GateKey { session: block(), node: 7, first_instance: 64 },
            labels: LabelSeed::new(block()),
            transfers: block(),
        }
    }

    /// Stands for correlated OT: zero labels, and the labels of packed bits.
    fn transfer(&self, c: &Circuit, bits: &[u8], count: usize) -> (Vec<Block>, Vec<Block>) {
        let mut zero = vec![Block::ZERO; count * c.evaluator_inputs()];
        Prg::new(self.transfers).fill_blocks(&mut zero);
        let label = |(i, z): (usize, &Block)| *z ^ (Block::mask(bits[i / 8] >> (i % 8) & 1 == 1) & self.delta);
        let labels = zero.iter().enumerate().map(label).collect();
        (zero, labels)
    }
}

fn check_garbled(g: &Gadget, xs: &[i128], seed: u64, f: impl Fn(&[i128]) -> Vec<i128>) {
    let expected: Vec<u64> = xs.chunks(g.cols()).flat_map(f).map(|y| residue(g.ring_out(), y)).collect();
    assert!(garbled(g, xs, seed) == expected);
}

#[test]
fn gadgets_through_half_gates() {
    let mut rng = Spread(11);
    // Full groups, partial ones, narrow ones.
    for count in [1usize, 3, 8, 9, 31, 32, 33, 70, 100] {
        let g = truncation(32, 12, 40);
        let xs: Vec<i128> = (0..count).map(|_| rng.within(-(1 << 31), (1 << 31) - 5000)).collect();
        check_garbled(&g, &xs, count as u64, |x| vec![round_shift(x[0], 12)]);
        let f = gelu(24, 12, 6000);
        let pieces = f.pieces();
        let g = activation(&f, 32, 32);
        let xs: Vec<i128> = (0..count).map(|_| rng.within(-(1 << 31), (1 << 31) - 5000) >> (rng.next() % 8)).collect();
        check_garbled(&g, &xs, count as u64, |x| vec![f.eval(pieces.as_ref(), x[0])]);
        let f = TanhTable { in_frac: 20, out_frac: 12, range_log2: 2, error_ppm: 3000 };
        let pieces = f.pieces();
        let g = Gadget::tanh(&f, ring(30), ring(21)).unwrap();
        let xs: Vec<i128> = (0..count).map(|_| rng.within(-(1 << 29), (1 << 29) - 1) >> (rng.next() % 10)).collect();
        check_garbled(&g, &xs, count as u64, |x| vec![f.eval(&pieces, x[0])]);
        let (f, t, g) = power(RowPower::InverseSqrt, 128f64.sqrt(), (24, 18), 20, 43, 1500, (45, 45));
        let xs: Vec<i128> = (0..count).map(|_| rng.within(0, (1 << 45) - 1) >> (rng.next() % 46)).collect();
        check_garbled(&g, &xs, count as u64, |x| vec![i128::from(f.eval(&t, x[0] as u64))]);
        let f = exp(20, 7, 12, 3000);
        let table = f.table();
        // Over 512 AND gates: several segments.
        let g = Gadget::exp_row(&f, 5, ring(30), ring(40)).unwrap();
        let xs: Vec<i128> =
            (0..5 * count).map(|_| rng.within(-(1 << 29), (1 << 29) - 5000) >> (rng.next() % 8)).collect();
        check_garbled(&g, &xs, count as u64, |x| f.eval_row(&table, x));
        let g = Gadget::saturate(ring(32), 8, 12, ring(17)).unwrap();
        let xs: Vec<i128> = (0..count).map(|_| rng.within(-(1 << 31), (1 << 31) - 300) >> (rng.next() % 24)).collect();
        check_garbled(&g, &xs, count as u64, |x| vec![saturate(round_shift(x[0], 8), 12)]);
        let g = Gadget::argmax(7, ring(20), ring(20)).unwrap();
        let xs: Vec<i128> =
            (0..7 * count).map(|_| rng.within(-(1 << 19), (1 << 19) - 1) >> (rng.next() % 20)).collect();
        check_garbled(&g, &xs, count as u64, |x| vec![argmax(x) as i128]);
    }
}

#[test]
fn chunks_may_be_cut_at_groups() {
    let mut rng = Spread(12);
    let g = truncation(20, 5, 13);
    let (c, count) = (g.circuit(), 100);
    let session = Session::new(&mut rng);
    let xs: Vec<i128> = (0..count as i128).map(|i| 37 * i - 1500).collect();
    let s = Shared::new(&g, &xs, &mut rng);
    let bits = g.garbler_bits(&s.garbler).unwrap();
    let (zero, active) = session.transfer(c, &g.evaluator_bits(&s.evaluator).unwrap(), count);
    let garbling = |first| Garbling::new(c, session.delta, session.key.at(first), &session.labels).unwrap();
    let whole = garbling(64).garble_chunk(&zero, count).unwrap();
    let own = garbling(64).garbler_labels(&bits, count).unwrap();
    let values = evaluate_chunk(c, session.key, &whole.tables, &active, &own, count).unwrap();
    let (mut tables, mut masks, mut found) = (Vec::new(), Vec::new(), Vec::new());
    for (first, some) in [(0, 32), (32, 64), (96, 4)] {
        let inputs = |each: usize| first * each..(first + some) * each;
        let part = garbling(64 + first as u64);
        let chunk = part.garble_chunk(&zero[inputs(c.evaluator_inputs())], some).unwrap();
        // A multiple of 8 instances begins at a byte.
        let part_bits = &bits[first * 20 / 8..(first + some) * 20 / 8];
        let labels = part.garbler_labels(part_bits, some).unwrap();
        assert!(labels == own[inputs(c.garbler_inputs())]);
        let table_range = inputs(c.and_count() * 32 + c.projection_bytes());
        let active = &active[inputs(c.evaluator_inputs())];
        let key = session.key.at(64 + first as u64);
        found.extend(evaluate_chunk(c, key, &whole.tables[table_range], active, &labels, some).unwrap());
        tables.extend(chunk.tables);
        masks.extend_from_slice(&chunk.masks);
    }
    assert!(tables == whole.tables && masks == *whole.masks && found == values);
}

#[test]
fn labels_follow_free_xor() {
    let mut rng = Spread(13);
    let g = truncation(16, 3, 16);
    let session = Session::new(&mut rng);
    let garbling = |key| Garbling::new(g.circuit(), session.delta, key, &session.labels).unwrap();
    let count = 40;
    let bits: Vec<u8> = (0..count * 2).map(|_| rng.next() as u8).collect();
    let zero = garbling(session.key).garbler_labels(&vec![0; bits.len()], count).unwrap();
    let labels = garbling(session.key).garbler_labels(&bits, count).unwrap();
    for (i, (l, z)) in labels.iter().zip(&zero).enumerate() {
        assert!(*l ^ *z == if bits[i / 8] >> (i % 8) & 1 == 1 { session.delta } else { Block::ZERO });
    }
    // Derived again, they are the same; another layer, instance or seed has others.
    assert!(garbling(session.key).garbler_labels(&bits, count).unwrap() == labels);
    let other = [
        garbling(GateKey { node: 8, ..session.key }).garbler_labels(&bits, count).unwrap(),
        garbling(session.key.at(128)).garbler_labels(&bits, count).unwrap(),
        Garbling::new(g.circuit(), session.delta, session.key, &LabelSeed::new(Block(5)))
            .unwrap()
            .garbler_labels(&bits, count)
            .unwrap(),
    ];
    assert!(other.iter().all(|o| o.iter().zip(&labels).all(|(a, b)| a != b)));
    // Permute bits are those of random labels: neither constant nor the same for different zero labels.
    let ones: u32 = zero.iter().map(|z| u32::from(z.lsb())).sum();
    assert!((zero.len() as u32 / 3..zero.len() as u32 * 2 / 3).contains(&ones));
}

#[test]
fn wrong_bytes_change_outputs_and_wrong_lengths_are_errors() {
    let mut rng = Spread(14);
    let g = truncation(24, 8, 24);
    let (c, count) = (g.circuit(), 33);
    let session = Session::new(&mut rng);
    let xs: Vec<i128> = (0..count as i128).map(|i| 1000 * i).collect();
    let s = Shared::new(&g, &xs, &mut rng);
    let bits = g.garbler_bits(&s.garbler).unwrap();
    let (zero, active) = session.transfer(c, &g.evaluator_bits(&s.evaluator).unwrap(), count);
    let garbling = Garbling::new(c, session.delta, session.key, &session.labels).unwrap();
    let chunk = garbling.garble_chunk(&zero, count).unwrap();
    let own = garbling.garbler_labels(&bits, count).unwrap();
    let run = |tables: &[u8], key| evaluate_chunk(c, key, tables, &active, &own, count).unwrap();
    let right = run(&chunk.tables, session.key);
    let mut changed = 0;
    for at in (0..chunk.tables.len()).step_by(97) {
        let mut tables = chunk.tables.clone();
        tables[at] ^= 0x10;
        changed += usize::from(run(&tables, session.key) != right);
    }
    // A table's half takes part only if the colour says so.
    let tried = chunk.tables.len().div_ceil(97);
    assert!(changed > tried / 3 && changed < tried, "{changed} of {tried}");
    assert!(run(&vec![0; chunk.tables.len()], session.key) != right);
    assert!(run(&chunk.tables, GateKey { node: 1, ..session.key }) != right);
    assert!(run(&chunk.tables, session.key.at(0)) != right);

    let short = |x: usize| x - 1;
    let tables = &chunk.tables;
    let evaluate = |t: &[u8], e: &[Block], o: &[Block], n| evaluate_chunk(c, session.key, t, e, o, n);
    assert!(matches!(evaluate(&tables[1..], &active, &own, count), Err(GarbleError::Length { .. })));
    assert!(matches!(evaluate(tables, &active[1..], &own, count), Err(GarbleError::Length { .. })));
    assert!(matches!(evaluate(tables, &active, &own[..short(own.len())], count), Err(GarbleError::Length { .. })));
    assert!(matches!(evaluate(tables, &active, &own, count + 1), Err(GarbleError::Length { .. })));
    assert!(matches!(evaluate(tables, &active, &own, usize::MAX), Err(GarbleError::TooMany { .. })));
    assert!(evaluate(&[], &[], &[], 0).unwrap().is_empty());
    assert!(garbling.garble_chunk(&zero[1..], count).is_err() && garbling.garble_chunk(&zero, usize::MAX).is_err());
    assert!(garbling.garbler_labels(&bits[1..], count).is_err());
    let even = Block(session.delta.0 & !1);
    assert!(matches!(Garbling::new(c, even, session.key, &session.labels), Err(GarbleError::Delta)));
    assert!(g.output_shares(&right[1..], &chunk.masks, count).is_err());
    assert!(g.reply(&right, &s.masks[1..]).is_err());
}

#[test]
fn parameters_out_of_range_are_refused() {
    assert!(Gadget::truncate(ring(32), 32, ring(32)).is_err());
    assert!(Gadget::truncate(ShareModulus::PowerOfTwo(65), 1, ring(32)).is_err());
    assert!(Gadget::truncate(ring(32), 1, ShareModulus::PowerOfTwo(0)).is_err());
    let f = gelu(24, 12, 6000);
    let with = |f: &ActivationTable| Gadget::activation(f, ring(32), ring(32)).is_err();
    assert!(!with(&f) && with(&ActivationTable { out_frac: 25, ..f.clone() }));
    assert!(
        with(&ActivationTable { in_frac: 50, ..f.clone() }) && with(&ActivationTable { range_log2: 40, ..f.clone() })
    );
    let f = exp(20, 7, 12, 3000);
    assert!(Gadget::exp_row(&f, 0, ring(30), ring(30)).is_err());
    assert!(Gadget::exp_row(&f, 5000, ring(30), ring(30)).is_err());
    assert!(Gadget::exp_row(&f, 4, ring(13), ring(30)).is_err());
    assert!(Gadget::exp_row(&exp(20, 13, 12, 3000), 4, ring(30), ring(30)).is_err());
    assert!(Gadget::exp_row(&exp(50, 40, 45, 3000), 4, ring(60), ring(30)).is_err());
    let (p, t, _) = power(RowPower::Reciprocal, 1.0, (12, 16), 12, 19, 1500, (40, 40));
    let with = |p: &PowerTable| Gadget::power(p, &t, ring(40), ring(40)).is_err();
    assert!(
        !with(&p) && with(&PowerTable { entry_bits: 3, ..p.clone() }) && with(&PowerTable { drop: 70, ..p.clone() })
    );
    assert!(with(&PowerTable { max_log2: 64, ..p.clone() }) && with(&PowerTable { min_log2: 20, ..p.clone() }));
    assert!(
        with(&PowerTable { power: RowPower::InverseSqrt, ..p.clone() }) && with(&PowerTable { mantissa_bits: 5, ..p })
    );
    let f = TanhTable { in_frac: 60, out_frac: 12, range_log2: 2, error_ppm: 3000 };
    assert!(Gadget::tanh(&f, ring(64), ring(32)).is_err());
    assert!(
        Gadget::saturate(ring(32), 40, 8, ring(32)).is_err() && Gadget::saturate(ring(32), 4, 0, ring(32)).is_err()
    );
    assert!(Gadget::argmax(0, ring(32), ring(32)).is_err() && Gadget::argmax(5000, ring(32), ring(32)).is_err());
    let prime = ShareModulus::prime(65537).unwrap();
    assert!(Gadget::from_prime(ring(32), ring(32)).is_err());
    assert!(Gadget::truncate(prime, 17, ring(32)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_rings(
        a in 8u32..=64, b in 1u32..=64, s in 0u32..64, out_frac in 1u32..16, bits in 1u32..8, seed: u64, ppm in 500u32..40_000,
        count in 1usize..40, cols in 1usize..6,
    ) {
        let mut rng = Spread(seed);
        let s = s % (a - 1);
        let g = truncation(a, s, b);
        let (lo, hi) = (-(1i128 << (a - 1)), (1i128 << (a - 1)) - 1 - g.garbler_offset() as i128);
        let xs: Vec<i128> = (0..count).map(|_| rng.within(lo, hi) >> (rng.next() % u64::from(a))).collect();
        check(&g, &xs, &mut rng, |x| vec![round_shift(x[0], s)]);
        check_garbled(&g, &xs, seed, |x| vec![round_shift(x[0], s)]);

        let g = Gadget::saturate(ring(a), s, bits, ring(b)).unwrap();
        check(&g, &xs, &mut rng, |x| vec![saturate(round_shift(x[0], s), bits)]);
        check_garbled(&g, &xs, seed, |x| vec![saturate(round_shift(x[0], s), bits)]);

        let in_frac = (out_frac + s).min(44);
        for kind in [Activation::Gelu, Activation::Relu] {
            let f = ActivationTable { activation: kind, in_frac, out_frac, range_log2: 2, error_ppm: ppm };
            if f.shift() >= a { continue }
            let t = f.pieces();
            let g = activation(&f, a, b);
            let xs: Vec<i128> = xs.iter().map(|&x| x.min(hi)).filter(|&x| x + (g.garbler_offset() as i128) < 1 << (a - 1)).collect();
            check(&g, &xs, &mut rng, |x| vec![f.eval(t.as_ref(), x[0])]);
            check_garbled(&g, &xs, seed, |x| vec![f.eval(t.as_ref(), x[0])]);
        }

        let frac_bits = bits.min(out_frac);
        let f = exp(s + frac_bits, frac_bits, out_frac, ppm);
        let t = f.table();
        let g = Gadget::exp_row(&f, cols, ring(a), ring(b)).unwrap();
        let xs: Vec<i128> = (0..cols * count).map(|_| rng.within(lo, hi) >> (rng.next() % u64::from(a))).collect();
        check(&g, &xs, &mut rng, |x| f.eval_row(&t, x));
        check_garbled(&g, &xs, seed, |x| f.eval_row(&t, x));
        let g = Gadget::argmax(cols, ring(a), ring(b)).unwrap();
        check(&g, &xs, &mut rng, |x| vec![argmax(x) as i128]);
        check_garbled(&g, &xs, seed, |x| vec![argmax(x) as i128]);

        let (min, max) = (s.min(a - 1), (s + out_frac).min(a - 1));
        for kind in [RowPower::Reciprocal, RowPower::InverseSqrt] {
            let Some(f) = PowerTable::new(kind, 1.0, s, 12, min, max, ppm) else { continue };
            let t = f.pieces(1.0, s, 12);
            let g = Gadget::power(&f, &t, ring(a), ring(b)).unwrap();
            let xs: Vec<i128> = (0..count).map(|_| rng.within(0, (1 << a) - 1) >> (rng.next() % u64::from(a))).collect();
            check(&g, &xs, &mut rng, |x| vec![i128::from(f.eval(&t, x[0] as u64))]);
            check_garbled(&g, &xs, seed, |x| vec![i128::from(f.eval(&t, x[0] as u64))]);
        }

        let f = TanhTable { in_frac, out_frac, range_log2: 2, error_ppm: ppm };
        let t = f.pieces();
        let g = Gadget::tanh(&f, ring(a), ring(b)).unwrap();
        check(&g, &xs, &mut rng, |x| vec![f.eval(&t, x[0])]);
        check_garbled(&g, &xs, seed, |x| vec![f.eval(&t, x[0])]);

        let t = [3, 257, 65537, 1_000_003, (1u64 << 38) - 45, (1 << 61) - 1][rng.next() as usize % 6];
        let g = Gadget::from_prime(ShareModulus::prime(t).unwrap(), ring(b)).unwrap();
        let xs: Vec<i128> = (0..count).map(|_| rng.within(-i128::from(t / 2), i128::from(t / 2))).collect();
        let shared = shared_modulo(t, &xs, g.ring_out(), &mut rng);
        check_shares(&g, &shared, &xs, |x| vec![x[0]]);
        let expected: Vec<u64> = xs.iter().map(|&x| residue(g.ring_out(), x)).collect();
        prop_assert!(garbled_shares(&g, &shared, seed) == expected);
    }
}
