//! Truncation, and what is refused.

use super::*;
use crate::arith::fixed::round_shift;

#[test]
fn truncation_is_the_simulators_and_off_by_one_at_most() {
    for (input, output, shift) in [
        (32, 32, 12),
        (32, 20, 12),
        (32, 21, 12),
        (30, 18, 12),
        (37, 26, 14),
        (26, 40, 12),
        (20, 33, 0),
        (33, 20, 0),
        (64, 64, 20),
        (64, 64, 0),
        (48, 64, 1),
        (64, 3, 60),
        (14, 30, 12),
    ] {
        let f = SharedFunction::truncate(shift, ring(input), ring(output)).unwrap();
        let values = spread(input - 2, 2000, u64::from(input));
        let (client, server) = split(&values, input, 5);
        let (y, _) = run(&f, (input, output), &client, &server, 9);
        for (i, &v) in values.iter().enumerate() {
            let exact = ring(output).from_signed(round_shift(i128::from(v), shift) as i64);
            let off = signed(ring(output).sub(y[i], exact), output);
            assert!(off.unsigned_abs() <= f.error_bound(), "{input} {output} {shift}: {v} gives {}", y[i]);
            assert!(shift > 0 || off == 0);
        }
    }
}

#[test]
fn truncation_rounds_without_bias() {
    let f = SharedFunction::truncate(8, ring(32), ring(32)).unwrap();
    let values = vec![1000; 4000];
    let server: Vec<u64> = random(4000, 32, 1);
    let client: Vec<u64> = server.iter().map(|s| 1000u64.wrapping_sub(*s) & 0xffff_ffff).collect();
    let y = f.simulate(&client, &server, &mut Coins::seeded(1)).unwrap();
    let mean = y.iter().sum::<u64>() as f64 / values.len() as f64;
    // 1000/256 = 3.906; the deviation of the mean is 0.005.
    assert!((mean - 1000.0 / 256.0).abs() < 0.03, "{mean}");
}

#[test]
fn known_sign_truncation_takes_under_eight_bytes() {
    let f = SharedFunction::truncate(12, ring(32), ring(32)).unwrap();
    let (client, server) = split(&vec![12345; 4096], 32, 3);
    let (_, measured) = run(&f, (32, 32), &client, &server, 1);
    let per = (measured.up + measured.down) as f64 / 4096.0;
    assert!(per < 8.0, "{per}");
    assert_eq!(f.cots(4096).unwrap().server_sends, 4096);
}

#[test]
fn nothing_costs_nothing() {
    let f = SharedFunction::truncate(12, ring(32), ring(32)).unwrap();
    assert_eq!(f.cost(0).unwrap(), Cost::default());
    run(&f, (32, 32), &[], &[], 1);
}

#[test]
fn wrong_uses_are_refused() {
    let f = SharedFunction::truncate(12, ring(32), ring(32)).unwrap();
    assert!(SharedFunction::truncate(31, ring(32), ring(32)).is_err());
    assert!(SharedFunction::truncate(1, ShareModulus::PowerOfTwo(65), ring(32)).is_err());
    let prime = ShareModulus::slots(34, 8192).unwrap();
    for (from, to) in [(prime, ring(32)), (ring(32), prime)] {
        let refused = SharedFunction::truncate(12, from, to).err().map(|e| e.to_string());
        assert!(refused.is_some_and(|e| e.contains("garbled circuits")));
    }
    let cots = f.cots(8).unwrap();
    let (a, b, _) = parties(cots, 1);
    assert!(matches!(f.client(a, vec![0; 8], vec![0; 7]), Err(SharedError::Length { .. })));
    assert!(matches!(f.client(b, vec![0; 8], vec![0; 8]), Err(SharedError::Role)));
    // A message of another length, and one with dirty padding.
    let start = || {
        let mut task = f.server(parties(cots, 1).1, vec![0; 8]).unwrap();
        assert!(matches!(task.resume(None), Ok(Step::Send(_))));
        assert!(matches!(task.resume(None), Ok(Step::Receive)));
        task
    };
    assert!(matches!(start().resume(Some(vec![0; 2])), Err(SharedError::MessageLength { expected: 1, found: 2 })));
    let mut task = start();
    assert!(matches!(task.resume(Some(vec![0; 1])), Ok(Step::Receive)));
    assert!(task.resume(Some(vec![0; 31])).is_err());
    assert!(matches!(task.resume(None), Err(SharedError::Finished)));
    let f = SharedFunction::truncate(2, ring(10), ring(9)).unwrap();
    let mut task = f.server(parties(f.cots(3).unwrap(), 1).1, vec![0; 3]).unwrap();
    assert!(matches!(task.resume(None), Ok(Step::Send(_))));
    assert!(matches!(task.resume(Some(vec![0x80])), Err(SharedError::Packing(_))));
}
