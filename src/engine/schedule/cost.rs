//! What operations cost on this machine, measured in well under a second, and estimates for tasks from it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    arith::sample::{self, SecureRng},
    engine::{Backend, Buffer, KeySwitchShape, MatmulShape, Result, RnsRing, Shape},
};

/// How long each gauge runs, beside a first run that warms tables and pipelines up.
const TIME: Duration = Duration::from_millis(40);

/// Polynomials of a batch that is measured.
const POLYS: usize = 16;

/// What a cost model holds for: one that differs in any field is another machine's or another program's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CostKey {
    /// Release of this program.
    pub version: String,
    /// Kind, adapter, driver and product form of the backend.
    pub backend: [String; 4],
    /// CPU threads.
    pub threads: usize,
    /// Ring dimension that was measured.
    pub n: usize,
    /// Data limbs that were measured; the ring's last modulus is the special prime.
    pub limbs: usize,
}

impl CostKey {
    /// The key of this program on `backend` with `threads` CPU threads, for the first `limbs` moduli of `ring`.
    pub fn new(backend: &dyn Backend, threads: usize, ring: &RnsRing, limbs: usize) -> Self {
        let info = backend.info();
        let backend = [info.kind.to_owned(), info.adapter, info.driver, info.form.to_owned()];
        Self { version: env!("CARGO_PKG_VERSION").into(), backend, threads, n: ring.n(), limbs }
    }
}

/// Gauges of the host that the engine cannot take itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostRates {
    /// AES blocks a second on one thread.
    pub aes_blocks_per_s: f64,
}

/// Work of a task, in operations. Those on polynomials are of the ring with dimension `n` and `limbs` data limbs; 0 means as
/// measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Ring dimension.
    pub n: usize,
    /// Data limbs.
    pub limbs: usize,
    /// Transforms of one limb of one polynomial, those inside key switches not counted.
    pub ntts: u64,
    /// Products of a ciphertext and a plaintext, of all limbs, in the NTT domain.
    pub products: u64,
    /// Key switches of one ciphertext.
    pub key_switches: u64,
    /// Bytes to the device.
    pub upload_bytes: u64,
    /// Bytes from the device.
    pub download_bytes: u64,
    /// Operations handed to the device.
    pub launches: u64,
    /// Wide Gaussians on one CPU thread.
    pub samples: u64,
    /// AES blocks on one CPU thread.
    pub aes_blocks: u64,
}

/// Seconds of every operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostModel {
    /// What it holds for.
    pub key: CostKey,
    /// A transform of one limb of one polynomial, in a batch.
    pub ntt: f64,
    /// A product of a ciphertext and a plaintext, all limbs, in a batch.
    pub product: f64,
    /// A key switch of one ciphertext, in a batch.
    pub key_switch: f64,
    /// A byte to the device.
    pub upload: f64,
    /// A byte from the device.
    pub download: f64,
    /// A small operation.
    pub launch: f64,
    /// A wide Gaussian on one thread.
    pub sample: f64,
    /// An AES block on one thread.
    pub aes_block: f64,
}

impl CostModel {
    /// Measures `backend` with the first `limbs` moduli of `ring`; the last modulus is the special prime, and without one
    /// (`limbs` is all of them) a key switch is estimated from the transforms in it. About 0.3 s where the device is fast.
    ///
    /// # Errors
    /// A failing device.
    pub fn measure(
        backend: &dyn Backend,
        ring: &Arc<RnsRing>,
        limbs: usize,
        threads: usize,
        host: HostRates,
    ) -> Result<Self> {
        let key = CostKey::new(backend, threads, ring, limbs);
        let n = ring.n();
        let shape = Shape { polys: POLYS, limbs };
        let words = vec![1u32; POLYS * limbs * n];
        let bytes = (words.len() * 4) as f64;
        let x = backend.upload(&words)?;
        let small = backend.upload(&words[..n])?;
        // A device works in order: reading a small buffer back waits for all that was launched before.
        let settle = || backend.download(&small).map(drop);

        let ntt = seconds_a_run(|| backend.ntt_forward(ring, &x, shape).and_then(|_| settle()))?;
        let matmul = MatmulShape { groups: 1, inputs: POLYS / 2, outputs: 2, limbs };
        let product = seconds_a_run(|| backend.matmul_plain(ring, &x, &x, matmul).and_then(|_| settle()))?;
        let upload = seconds_a_run(|| backend.upload(&words).and_then(|_| settle()))?;
        let download = seconds_a_run(|| backend.download(&x).map(drop))?;
        let one = Shape { polys: 1, limbs: 1 };
        let launch = seconds_a_run(|| {
            (0..POLYS).try_fold(small.clone(), |x, _| backend.add(ring, &x, &small, one)).and_then(|_| settle())
        })?;
        let ntt = ntt / (POLYS * limbs) as f64;
        let key_switch = match ring.moduli().len() {
            all if all == limbs + 1 => key_switch(backend, ring, &x, &settle)?,
            _ => ntt * ((limbs + 1) * (limbs + 2)) as f64,
        };
        Ok(Self {
            key,
            ntt,
            product: product / POLYS as f64,
            key_switch,
            upload: upload / bytes,
            download: download / bytes,
            launch: launch / POLYS as f64,
            sample: sample()?,
            aes_block: 1.0 / host.aes_blocks_per_s,
        })
    }

    /// Round numbers of no machine, for where nothing was measured: the order of tasks then follows the proportions of a CPU.
    pub fn nominal(n: usize, limbs: usize) -> Self {
        let key = CostKey { version: String::new(), backend: Default::default(), threads: 1, n, limbs };
        let ntt = 1e-9 * n as f64 * (n as f64).log2();
        Self {
            key,
            ntt,
            product: 1e-9 * (n * limbs) as f64,
            key_switch: ntt * ((limbs + 1) * (limbs + 2)) as f64,
            upload: 2e-10,
            download: 2e-10,
            launch: 1e-5,
            sample: 3e-8,
            aes_block: 1e-9,
        }
    }

    /// Seconds that `work` will take, one operation after another on the resource that it is for.
    pub fn estimate(&self, work: &Work) -> f64 {
        let measured = |given: usize, own: usize| (if given == 0 { own } else { given }) as f64;
        let (n, n0) = (measured(work.n, self.key.n), self.key.n as f64);
        let (limbs, limbs0) = (measured(work.limbs, self.key.limbs), self.key.limbs as f64);
        // A transform is N log N, a product N for each limb, a key switch (limbs + 1)(limbs + 2) transforms.
        let transform = n * n.log2() / (n0 * n0.log2());
        let switch = transform * (limbs + 1.0) * (limbs + 2.0) / ((limbs0 + 1.0) * (limbs0 + 2.0));
        let times = |count: u64, seconds: f64| count as f64 * seconds;
        times(work.ntts, self.ntt * transform)
            + times(work.products, self.product * n / n0 * limbs / limbs0)
            + times(work.key_switches, self.key_switch * switch)
            + times(work.upload_bytes, self.upload)
            + times(work.download_bytes, self.download)
            + times(work.launches, self.launch)
            + times(work.samples, self.sample)
            + times(work.aes_blocks, self.aes_block)
    }

    /// Whether every rate is a positive number.
    pub(super) fn is_plausible(&self) -> bool {
        let Self { key: _, ntt, product, key_switch, upload, download, launch, sample, aes_block } = self;
        let rates = [ntt, product, key_switch, upload, download, launch, sample, aes_block];
        rates.into_iter().all(|&seconds| seconds.is_finite() && seconds > 0.0)
    }
}

fn key_switch(backend: &dyn Backend, ring: &Arc<RnsRing>, x: &Buffer, settle: &dyn Fn() -> Result<()>) -> Result<f64> {
    let shape = KeySwitchShape::full(ring, POLYS);
    let key = backend.upload(&vec![1; shape.key_words(ring)])?;
    Ok(seconds_a_run(|| backend.key_switch(ring, x, shape, &key).and_then(|_| settle()))? / POLYS as f64)
}

fn sample() -> Result<f64> {
    let mut out = vec![0i128; 1 << 12];
    let mut rng = SecureRng::from_seed([0; 32]);
    let seconds = seconds_a_run(|| {
        sample::rounded_gaussian(&mut rng, 2f64.powi(60), &mut out);
        std::hint::black_box(&out);
        Ok(())
    })?;
    Ok(seconds / out.len() as f64)
}

/// Mean seconds of `run`, without the first.
fn seconds_a_run(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let (start, mut count) = (Instant::now(), 0);
    while count == 0 || start.elapsed() < TIME {
        run()?;
        count += 1;
    }
    Ok(start.elapsed().as_secs_f64() / count as f64)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{arith::primes::ntt_primes, engine::cpu::CpuBackend};

    /// A model whose rates are easy to reckon with.
    pub(in crate::engine::schedule) fn model() -> CostModel {
        let backend = ["cpu", "a", "", "plain"].map(String::from);
        let key = CostKey { version: "1".into(), backend, threads: 2, n: 1024, limbs: 3 };
        CostModel {
            key,
            ntt: 1.0,
            product: 1.0,
            key_switch: 1.0,
            upload: 1.0,
            download: 1.0,
            launch: 1.0,
            sample: 1.0,
            aes_block: 1.0,
        }
    }

    #[test]
    fn estimates_scale_with_the_ring() {
        let m = model();
        let all = Work {
            ntts: 1,
            products: 2,
            key_switches: 3,
            upload_bytes: 4,
            download_bytes: 5,
            launches: 6,
            samples: 7,
            aes_blocks: 8,
            ..Work::default()
        };
        assert_eq!(m.estimate(&all), 36.0);
        assert_eq!(m.estimate(&Work { n: 1024, limbs: 3, ..all }), 36.0);
        assert_eq!(m.estimate(&Work::default()), 0.0);
        assert!((m.estimate(&Work { n: 2048, ntts: 1, ..Work::default() }) - 2.2).abs() < 1e-12);
        assert!((m.estimate(&Work { n: 2048, limbs: 6, products: 1, ..Work::default() }) - 4.0).abs() < 1e-12);
        assert!((m.estimate(&Work { limbs: 5, key_switches: 1, ..Work::default() }) - 42.0 / 20.0).abs() < 1e-12);
    }

    #[test]
    fn a_backend_is_measured() {
        let ring = Arc::new(RnsRing::new(1024, &ntt_primes(30, 1024, 3).unwrap()).unwrap());
        let backend = CpuBackend::new(Some(1));
        for limbs in [2, 3] {
            let m = CostModel::measure(&backend, &ring, limbs, 1, HostRates { aes_blocks_per_s: 1e8 }).unwrap();
            assert!(m.is_plausible(), "{m:?}");
            assert_eq!((m.key.n, m.key.limbs, m.key.backend[0].as_str()), (1024, limbs, "cpu"));
            assert_eq!(m.aes_block, 1e-8);
            // A key switch holds (limbs + 1)(limbs + 2) transforms; whatever the machine's load, it is no single one.
            assert!(m.key_switch > m.ntt, "{m:?}");
        }
    }
}
