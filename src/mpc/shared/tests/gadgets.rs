//! Gadgets that are no functions of their own.

use super::super::{logic, range};
use super::*;

/// Runs the tasks of a gadget that is no function of its own.
pub(super) fn gadget<F, G>(
    client: Vec<u64>,
    server: Vec<u64>,
    cost: impl Fn(usize, &mut Cost) -> Result<(), SharedError>,
    body: G,
) -> (Vec<u64>, Vec<u64>, Measured)
where
    F: Future<Output = Result<Vec<u64>, SharedError>> + Send + 'static,
    G: Fn(Party, Vec<u64>) -> F,
{
    let mut declared = Cost::default();
    cost(client.len(), &mut declared).unwrap();
    let (a, b, _) = parties(declared.cots, 31);
    let mut a = Task::new(a, |party| body(party, client));
    let mut b = Task::new(b, |party| body(party, server));
    let (a, b, measured) = drive(&mut a, &mut b).unwrap();
    assert_eq!((measured.up, measured.down, measured.rounds), (declared.up, declared.down, declared.rounds));
    (a, b, measured)
}

#[test]
fn signs_are_right_and_take_under_sixty_bytes() {
    for ring in [2, 5, 6, 16, 17, 31, 32, 33, 48, 63] {
        let values = spread(ring - 1, 3000, u64::from(ring));
        let (client, server) = split(&values, ring, 4);
        let (a, b, measured) = gadget(
            client,
            server,
            |count, cost| logic::sign_cost(ring, count, cost),
            move |mut party, x| async move { Ok(logic::sign(&mut party, ring, &x).await?.to_vec()) },
        );
        for (i, v) in values.iter().enumerate() {
            assert_eq!((a[i] ^ b[i]) & 1, u64::from(*v < 0), "{ring} {v}");
        }
        let per = (measured.up + measured.down) as f64 / values.len() as f64;
        assert!(ring > 33 || per < 60.0, "{per}");
        if ring == 33 {
            println!("32-bit comparison: {per:.1} bytes, {} flights", measured.rounds);
        }
    }
}

#[test]
fn selection_multiplies_by_a_shared_bit() {
    for ring in [1, 9, 32, 64] {
        let mask = u64::MAX >> (64 - ring);
        let (client, server) = (random(500, ring, 1), random(500, ring, 2));
        let bits = [random(500, 1, 3), random(500, 1, 4)];
        let own = bits.clone();
        let (a, b, _) = gadget(
            client.clone(),
            server.clone(),
            |count, cost| logic::mux_cost(count, &[ring], cost),
            move |mut party, x| {
                let bit = own[usize::from(party.role() == Role::Server)].clone();
                async move {
                    let y = logic::mux(&mut party, &[logic::Mux { bit: &bit, value: &x, ring }]).await?;
                    Ok(y[0].to_vec())
                }
            },
        );
        for i in 0..500 {
            let value = client[i].wrapping_add(server[i]) & mask;
            let bit = bits[0][i] ^ bits[1][i];
            assert_eq!(a[i].wrapping_add(b[i]) & mask, value * bit);
        }
    }
}

#[test]
fn ranges_are_told_apart() {
    for (ring, bits) in [(14, 12), (18, 12), (19, 12), (20, 12), (30, 12), (9, 2), (13, 12), (40, 3)] {
        let range = range::Range { ring, bits };
        let mut values = spread(ring - 1, 2000, 3);
        let end = 1i64 << bits;
        values.extend([end - 1, end, -end, -end - 1, -end + 1, 2 * end, -2 * end, 2 * end - 1, -2 * end - 1]);
        values.retain(|v| (-(1i64 << (ring - 1))..1 << (ring - 1)).contains(v));
        let (client, server) = split(&values, ring, 4);
        let (a, b, measured) = gadget(
            client,
            server,
            |count, cost| range.cost(count, cost),
            move |mut party, x| async move { Ok(range.run(&mut party, &x).await?.to_vec()) },
        );
        for (i, v) in values.iter().enumerate() {
            let state = a[i] ^ b[i];
            assert_eq!(state & 1, u64::from(*v < 0), "{ring} {bits} {v}");
            assert_eq!(state >> 1, u64::from((-end..end).contains(v)), "{ring} {bits} {v}");
        }
        println!("range {ring} {bits}: {:.1} B", (measured.up + measured.down) as f64 / values.len() as f64);
    }
}
