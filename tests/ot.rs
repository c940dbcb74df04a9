//! Oblivious transfer and products by correlated OT, through the public interface, as two parties would use them.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use heliostat::arith::ShareModulus;
use heliostat::mpc::block::Block;
use heliostat::mpc::ot::{BaseSender, COLUMNS, CotReceiver, CotSender, OtError, iknp::extend_len};
use heliostat::mpc::prg::CrHash;
use heliostat::mpc::shared::{ProductShape, gilboa};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

fn set_up(seed: u64) -> (CotSender, CotReceiver) {
    let mut rng = rng(seed);
    let delta = Block::random(&mut rng).with_lsb_set();
    let (base, opening) = BaseSender::new(b"test", &mut rng);
    let (sender, reply) = CotSender::set_up(b"test", delta, &opening, &mut rng).unwrap();
    (sender, CotReceiver::set_up(base, &reply).unwrap())
}

/// Packed uniform choice bits with zero padding.
fn random_choices(count: usize, rng: &mut ChaCha20Rng) -> Vec<u8> {
    let mut bytes = vec![0; count.div_ceil(8)];
    rng.fill_bytes(&mut bytes);
    if let Some(last) = bytes.last_mut()
        && !count.is_multiple_of(8)
    {
        *last &= (1 << (count % 8)) - 1;
    }
    bytes
}

#[test]
fn cots_satisfy_the_correlation_and_never_repeat() {
    let (mut sender, mut receiver) = set_up(1);
    let mut rng = rng(2);
    let mut seen = Vec::new();
    let mut moved = 0;
    for count in [1usize, 7, 8, 127, 128, 129, 1000, 8191, 8192, 8193, 20_000, 0, 5] {
        let choices = random_choices(count, &mut rng);
        let (message, t) = receiver.extend(&choices, count).unwrap();
        assert_eq!(message.len(), extend_len(count).unwrap());
        assert_eq!(message.len(), count.next_multiple_of(COLUMNS) * 16);
        let q = sender.extend(&message, count).unwrap();
        assert_eq!((q.len(), t.len()), (count, count));
        for j in 0..count {
            let choice = choices[j / 8] >> (j % 8) & 1 == 1;
            assert!(t[j] == q[j] ^ (Block::mask(choice) & sender.delta()), "{count} {j}");
        }
        seen.extend(q.iter().map(|x| x.0));
        moved += count.next_multiple_of(COLUMNS) as u64;
        assert_eq!((sender.position(), receiver.position()), (moved, moved));
    }
    let total = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), total, "an output repeated");
}

#[test]
fn the_extension_message_looks_uniform_whatever_the_choices() {
    for fill in [0u8, 0xff] {
        let (_, mut receiver) = set_up(3);
        let (message, t) = receiver.extend(&[fill; 2048], 16_384).unwrap();
        for bytes in [&message[..], bytemuck::cast_slice(&t)] {
            // 2^21 bits: the count of ones has standard deviation 724.
            let ones: u32 = bytes.iter().map(|b| b.count_ones()).sum();
            assert!(ones.abs_diff(1 << 20) < 6 * 724, "{fill} {ones}");
        }
    }
}

#[test]
fn set_up_checks_its_inputs() {
    let (_, opening) = BaseSender::new(b"", &mut rng(1));
    assert_eq!(CotSender::set_up(b"", Block(2), &opening, &mut rng(2)).err(), Some(OtError::Delta));
    assert!(CotSender::set_up(b"", Block(3), &opening[1..], &mut rng(2)).is_err());
    let expected = Some(OtError::BaseCount { expected: 128, found: 127 });
    assert_eq!(CotSender::new(Block(1), &[Block::ZERO; 127]).err(), expected);
    assert_eq!(CotReceiver::new(&[[Block::ZERO; 2]; 127]).err(), expected);
    let (base, _) = BaseSender::new(b"", &mut rng(1));
    assert!(CotReceiver::set_up(base, &[1; 31]).is_err());
}

#[test]
fn malformed_extensions_give_errors_and_do_not_move_the_streams() {
    let (mut sender, mut receiver) = set_up(4);
    assert!(receiver.extend(&[1, 2], 17).is_err());
    assert!(receiver.extend(&[1, 2, 3], 16).is_err());
    assert!(receiver.extend(&[0x10], 4).is_err());
    assert!(receiver.extend(&[], usize::MAX).is_err());
    assert_eq!(receiver.position(), 0);
    let (message, t) = receiver.extend(&[0x0f], 5).unwrap();
    assert!(sender.extend(&message[..message.len() - 1], 5).is_err());
    assert!(sender.extend(&message, 129).is_err());
    assert!(sender.extend(&[], usize::MAX).is_err());
    assert_eq!(sender.position(), 0);
    let q = sender.extend(&message, 5).unwrap();
    assert!(t[4] == q[4] && t[0] == q[0] ^ sender.delta());
}

#[test]
fn products_of_shares_over_real_ots() {
    let (mut sender, mut receiver) = set_up(5);
    let mut rng = rng(6);
    for (call, (l, rows, width)) in
        [(32, 5, 128), (43, 3, 32), (64, 2, 300), (13, 9, 1), (1, 1, 3)].into_iter().enumerate()
    {
        let modulus = ShareModulus::pow2(l).unwrap();
        let shape = ProductShape::new(rows, width, modulus).unwrap();
        let x: Vec<u64> = (0..rows).map(|_| modulus.reduce(rng.next_u64())).collect();
        let y: Vec<u64> = (0..rows * width).map(|_| modulus.reduce(rng.next_u64())).collect();
        let choices = gilboa::choice_bits(&x, modulus);
        let (extension, t) = receiver.extend(&choices, shape.ots()).unwrap();
        let q = sender.extend(&extension, shape.ots()).unwrap();
        let hash = CrHash::derive(Block(99), call as u64);
        let (message, ours) = gilboa::send(&shape, &hash, sender.delta(), &q, &y).unwrap();
        let theirs = gilboa::receive(&shape, &hash, &t, &choices, &message).unwrap();
        for i in 0..rows * width {
            assert_eq!(modulus.add(ours[i], theirs[i]), modulus.mul(x[i / width], y[i]), "l {l} element {i}");
        }
    }
}
