//! The functions against their simulators, their exact forms and the real functions.

use super::*;
use crate::arith::fixed::{Activation, ActivationTable, ExpTable, PowerTable, RowPower, TanhTable};

fn activation(activation: Activation, in_frac: u32, out_frac: u32, error_ppm: u32) -> ActivationTable {
    ActivationTable { activation, in_frac, out_frac, range_log2: 2, error_ppm }
}

/// All of `[-2^log2, 2^log2)` in steps, and the neighbourhoods of 0 and of the ends of the table's range.
fn dense(log2: u32, frac: u32, steps: i64) -> Vec<i64> {
    let limit = 1i64 << log2;
    let mut values: Vec<i64> = (0..steps).map(|k| -limit + 2 * limit / steps * k + k % 7).collect();
    for centre in [0, 4 << frac, -4 << frac] {
        values.extend((-600..600).map(|d| centre + d * d * d / 300));
    }
    values.extend([limit - 1, -limit]);
    values.retain(|v| (-limit..limit).contains(v));
    values
}

#[test]
fn activations_are_the_simulators_and_within_their_error() {
    for (kind, in_frac, out_frac, error_ppm, input, output) in [
        (Activation::Gelu, 22, 10, 6_000, 30, 26),
        (Activation::Gelu, 22, 10, 6_000, 32, 24),
        (Activation::Gelu, 22, 10, 3_000, 30, 18),
        (Activation::GeluTanh, 24, 12, 6_000, 34, 37),
        (Activation::Gelu, 12, 12, 6_000, 18, 30),
        (Activation::Gelu, 14, 10, 6_000, 18, 20),
        (Activation::Gelu, 22, 10, 6_000, 31, 24),
        (Activation::Gelu, 22, 10, 6_000, 42, 34),
        (Activation::Relu, 22, 10, 6_000, 30, 26),
        (Activation::Relu, 22, 10, 6_000, 40, 30),
        (Activation::Relu, 12, 12, 6_000, 20, 24),
    ] {
        let table = activation(kind, in_frac, out_frac, error_ppm);
        let f = SharedFunction::activation(&table, ring(input), ring(output)).unwrap();
        let values = dense(input - 2, in_frac, 6000);
        let (client, server) = split(&values, input, 5);
        let (y, measured) = run(&f, (input, output), &client, &server, 9);
        let exact = table.pieces();
        let (mut worst, mut worst_real) = (0u64, 0f64);
        for (i, &v) in values.iter().enumerate() {
            let got = signed(y[i], output);
            worst = worst.max((got - table.eval(exact.as_ref(), v.into()) as i64).unsigned_abs());
            let real = kind.real(v as f64 / f64::from(1u32 << in_frac)) * f64::from(1u32 << out_frac);
            worst_real = worst_real.max((got as f64 - real).abs());
        }
        let per = (measured.up + measured.down) as f64 / values.len() as f64;
        let cots = f.cots(1).unwrap();
        println!(
            "{kind:?} {in_frac}->{out_frac} ({error_ppm}) {input}->{output}: {per:.1} B, {} COTs, {} flights; off by {worst} \
             (bound {}), really {:.4} ({:.4})",
            cots.client_sends + cots.server_sends,
            measured.rounds,
            f.error_bound(),
            worst_real / f64::from(1 << out_frac),
            f.real_error() / f64::from(1 << out_frac),
        );
        assert!(worst <= f.error_bound() && worst_real <= f.real_error());
        assert!(per < 300.0 && worst_real < 0.008 * f64::from(1 << out_frac));
    }
}

/// Rows of scores in `[-limit, limit)`: scattered, close together, equal, with far columns as padding has, at the ends.
fn score_rows(rows: usize, columns: usize, limit: i64, frac: u32) -> Vec<i64> {
    let mut values = Vec::new();
    for row in 0..rows {
        let noise = random(columns, 62, row as u64);
        for (column, noise) in noise.into_iter().enumerate() {
            let wide = (noise % (2 * limit) as u64) as i64 - limit;
            values.push(match row % 5 {
                0 => wide,
                1 => wide % (6 << frac),
                2 => 12345,
                3 if column % 3 == 0 => -limit,
                3 => limit - 1 - (wide & 0xfff),
                _ => wide % 5000 - limit / 2,
            });
        }
    }
    values
}

#[test]
fn numerators_are_the_simulators_and_within_their_error() {
    for (in_frac, frac_bits, out_frac, columns, input, output) in [
        (18, 5, 11, 128, 28, 44),
        (18, 5, 11, 32, 28, 40),
        (18, 7, 12, 7, 30, 48),
        (18, 5, 11, 1, 28, 44),
        (8, 6, 16, 5, 20, 18),
        (20, 8, 13, 12, 34, 14),
        (12, 4, 6, 9, 17, 30),
    ] {
        let table = ExpTable { in_frac, frac_bits, out_frac, error_ppm: 5_000 };
        let f = SharedFunction::exp(&table, columns, ring(input), ring(output)).unwrap();
        let values = score_rows(if columns > 100 { 16 } else { 60 }, columns, 1 << (input - 2), in_frac);
        let (client, server) = split(&values, input, 5);
        let (y, measured) = run(&f, (input, output), &client, &server, 9);
        let exact = table.table();
        let (mut worst, mut worst_real) = (0u64, 0f64);
        for (row, y) in values.chunks(columns).zip(y.chunks(columns)) {
            let max = *row.iter().max().unwrap();
            let wide: Vec<i128> = row.iter().map(|&s| s.into()).collect();
            let factor = table.row_factor(&wide);
            for ((&score, expected), &got) in row.iter().zip(table.eval_row(&exact, &wide)).zip(y) {
                worst = worst.max((got as i64).abs_diff((expected as f64 / factor).round() as i64));
                let distance = (max - score) as f64 / f64::from(1u32 << in_frac);
                worst_real = worst_real.max((got as f64 - libm::exp2(f64::from(out_frac) - distance)).abs());
            }
        }
        let per = (measured.up + measured.down) as f64 / values.len() as f64;
        let cots = f.cots(values.len()).unwrap();
        println!(
            "exp {in_frac}->{out_frac}, {columns} columns, {input}->{output}: {per:.1} B, {:.1} COTs, {} flights; off by {worst} \
             (bound {}), really {worst_real:.1} ({:.1}) units",
            (cots.client_sends + cots.server_sends) as f64 / values.len() as f64,
            measured.rounds,
            f.error_bound(),
            f.real_error(),
        );
        assert!(worst <= f.error_bound() && worst_real <= f.real_error());
        assert!(per < 300.0);
    }
    let table = ExpTable { in_frac: 18, frac_bits: 5, out_frac: 11, error_ppm: 5_000 };
    let f = SharedFunction::exp(&table, 8, ring(28), ring(44)).unwrap();
    assert!(matches!(f.cost(12), Err(SharedError::Rows { columns: 8, found: 12 })));
}

#[test]
fn powers_are_the_simulators_and_within_their_error() {
    let root = 384f64.sqrt();
    for (power, numerator, in_frac, out_frac, min_log2, max_log2, input, output) in [
        (RowPower::Reciprocal, 1.0, 11, 18, 11, 18, 44, 44),
        (RowPower::Reciprocal, 1.0, 11, 16, 11, 16, 37, 40),
        (RowPower::Reciprocal, 3.0, 4, 20, 6, 6, 12, 32),
        (RowPower::InverseSqrt, root, 20, 15, 18, 35, 37, 37),
        (RowPower::InverseSqrt, root, 20, 14, 17, 35, 37, 24),
        (RowPower::InverseSqrt, 1.0, 24, 12, 3, 42, 44, 48),
    ] {
        let table = PowerTable::new(power, numerator, in_frac, out_frac, min_log2, max_log2, 1_500).unwrap();
        let f = SharedFunction::power(&table, numerator, in_frac, out_frac, ring(input), ring(output)).unwrap();
        let mut values = Vec::new();
        for log2 in min_log2..=max_log2 {
            let noise = random(40, 60, u64::from(log2));
            values.extend(noise.into_iter().map(|r| ((1 << log2) | (r & ((1 << log2) - 1))) as i64));
            values.extend([1 << log2, (2 << log2) - 1, (1 << log2) + 1, 3 << log2 >> 1]);
        }
        let (client, server) = split(&values, input, 5);
        let (y, measured) = run(&f, (input, output), &client, &server, 9);
        let exact = table.pieces(numerator, in_frac, out_frac);
        let (mut worst, mut worst_real) = (0f64, 0f64);
        for (&v, &y) in values.iter().zip(&y) {
            let expected = table.eval(&exact, v as u64) as f64;
            let exponent = if power == RowPower::Reciprocal { -1.0 } else { -0.5 };
            let x = v as f64 / libm::exp2(in_frac.into());
            let real = numerator * libm::pow(x, exponent) * libm::exp2(out_frac.into());
            if real >= libm::exp2(f64::from(output - 1)) {
                continue;
            }
            let y = y as f64;
            assert!(
                (y - expected).abs() <= f.error_bound() as f64 + f.relative_error_bound() * expected,
                "{v} {y} {expected}"
            );
            assert!((y - real).abs() <= f.real_error() + f.real_relative_error() * real, "{v} {y} {real}");
            worst = worst.max(((y - expected).abs() - f.error_bound() as f64) / expected);
            worst_real = worst_real.max(((y - real).abs() - 1.0) / real);
        }
        let per = (measured.up + measured.down) as f64 / values.len() as f64;
        let cots = f.cots(1).unwrap();
        println!(
            "{power:?} 2^{min_log2}..2^{max_log2} {input}->{output}: {per:.0} B, {} COTs, {} flights; relatively off by {worst:.5} \
             (bound {:.5}), really {worst_real:.5} ({:.5})",
            cots.client_sends + cots.server_sends,
            measured.rounds,
            f.relative_error_bound(),
            f.real_relative_error(),
        );
        assert!(per < 4096.0 && f.real_relative_error() < 0.001);
    }
}

#[test]
fn tanh_is_the_simulators_and_within_its_error() {
    for (in_frac, out_frac, error_ppm, input, output) in
        [(22, 10, 3_000, 30, 24), (20, 12, 1_500, 36, 37), (9, 6, 20_000, 14, 20)]
    {
        let table = TanhTable { in_frac, out_frac, range_log2: 2, error_ppm };
        let f = SharedFunction::tanh(&table, ring(input), ring(output)).unwrap();
        let values = dense(input - 2, in_frac, 3000);
        let (client, server) = split(&values, input, 5);
        let (y, measured) = run(&f, (input, output), &client, &server, 9);
        let exact = table.pieces();
        let (mut worst, mut worst_real) = (0u64, 0f64);
        for (&v, &y) in values.iter().zip(&y) {
            let y = signed(y, output);
            worst = worst.max(y.abs_diff(table.eval(&exact, v.into()) as i64));
            let real = libm::tanh(v as f64 / libm::exp2(in_frac.into())) * libm::exp2(out_frac.into());
            worst_real = worst_real.max((y as f64 - real).abs());
        }
        let per = (measured.up + measured.down) as f64 / values.len() as f64;
        let cots = f.cots(1).unwrap();
        println!(
            "tanh {in_frac}->{out_frac} {input}->{output}: {per:.0} B, {} COTs, {} flights; off by {worst} (bound {}), really \
             {worst_real:.1} ({:.1}) units",
            cots.client_sends + cots.server_sends,
            measured.rounds,
            f.error_bound(),
            f.real_error(),
        );
        assert!(worst <= f.error_bound() && worst_real <= f.real_error());
    }
}

#[test]
fn sizes_do_not_depend_on_values() {
    let gelu = activation(Activation::Gelu, 22, 10, 6);
    let exp = ExpTable { in_frac: 18, frac_bits: 5, out_frac: 11, error_ppm: 5_000 };
    let power = PowerTable::new(RowPower::Reciprocal, 1.0, 11, 16, 11, 16, 1_500).unwrap();
    let tanh = TanhTable { in_frac: 22, out_frac: 10, range_log2: 2, error_ppm: 3_000 };
    for (f, values) in [
        (SharedFunction::truncate(12, ring(32), ring(32)), [0, -1, 1 << 29]),
        (SharedFunction::activation(&gelu, ring(32), ring(32)), [0, -1, 1 << 29]),
        (SharedFunction::exp(&exp, 10, ring(32), ring(32)), [0, -1, 1 << 29]),
        (SharedFunction::power(&power, 1.0, 11, 16, ring(32), ring(32)), [1 << 11, 5555, 1 << 16]),
        (SharedFunction::tanh(&tanh, ring(32), ring(32)), [0, -1, 1 << 29]),
    ] {
        let f = f.unwrap();
        let runs = values.map(|v| {
            let (client, server) = split(&[v; 100], 32, v as u64 & 3);
            run(&f, (32, 32), &client, &server, 1).1
        });
        assert!(runs[0] == runs[1] && runs[1] == runs[2]);
    }
}
