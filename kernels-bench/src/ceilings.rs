//! How fast the machine is at all: copies, 32-bit multiplies, and the way to the device and back.
//!
//! Bandwidths count bytes read and bytes written. A copy is measured at several working sets (source and destination
//! together), because what stays in a cache moves faster than memory does. Rates are those of the fastest sample: a limit is
//! what the machine can do, not what other work left of it. More threads are never credited with less than fewer had.

use std::{hint::black_box, sync::Arc, time::Duration};

use heliostat::{
    arith::primes::ntt_primes,
    engine::{RnsRing, Shape, gpu},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    cost::Cost,
    devices::Device,
    stats::{Effort, Operation, interleave},
};

/// Copy bandwidth at one working set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyRate {
    /// Source and destination together, all threads together.
    pub bytes: f64,
    /// Bytes read and written a second.
    pub bytes_per_second: f64,
}

/// The limits of one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// As in the rows.
    pub backend: String,
    /// Adapter or processor.
    pub adapter: String,
    /// CPU threads.
    pub threads: usize,
    /// Copy bandwidth, small working sets first; empty if it was not measured.
    pub copy: Vec<CopyRate>,
    /// 32-bit integer multiplies a second.
    pub multiplies_per_second: Option<f64>,
    /// High words of 32-bit products a second, where they were measured apart: a GPU's product form makes them of several.
    #[serde(default)]
    pub high_multiplies_per_second: Option<f64>,
    /// One small operation (on a GPU: one launch) after another, each waited for: nanoseconds.
    pub round_trip_ns: f64,
    /// The same when only the last of many is waited for: nanoseconds an operation.
    pub dispatch_ns: f64,
    /// Bytes a second to the device.
    pub upload_bytes_per_second: f64,
    /// Bytes a second back from the device.
    pub readback_bytes_per_second: f64,
}

impl Ceilings {
    /// Copy bandwidth at a working set: between the measured ones by their logarithms.
    pub fn bandwidth(&self, bytes: f64) -> Option<f64> {
        let (first, last) = (self.copy.first()?, self.copy.last()?);
        let Some(above) = self.copy.iter().position(|rate| rate.bytes >= bytes) else {
            return Some(last.bytes_per_second);
        };
        let Some(below) = above.checked_sub(1) else { return Some(first.bytes_per_second) };
        let (below, above) = (&self.copy[below], &self.copy[above]);
        let part = (bytes / below.bytes).ln() / (above.bytes / below.bytes).ln();
        Some(below.bytes_per_second * (above.bytes_per_second / below.bytes_per_second).powf(part))
    }

    /// Bandwidth of main memory: that of the largest working set.
    pub fn memory_bandwidth(&self) -> Option<f64> {
        self.copy.last().map(|rate| rate.bytes_per_second)
    }

    /// Raises the rates to those of the same processor with fewer threads.
    fn at_least(&mut self, fewer: &Self) {
        for (rate, fewer) in self.copy.iter_mut().zip(&fewer.copy) {
            rate.bytes_per_second = rate.bytes_per_second.max(fewer.bytes_per_second);
        }
        if let (Some(own), Some(fewer)) = (&mut self.multiplies_per_second, fewer.multiplies_per_second) {
            *own = own.max(fewer);
        }
    }

    /// The least time that the device could take, in nanoseconds; `None` if its rates are not known.
    pub fn limit_ns(&self, cost: &Cost) -> Option<f64> {
        let (bandwidth, rate) = (self.bandwidth(cost.bytes)?, self.multiplies_per_second?);
        Some((cost.bytes / bandwidth).max(cost.multiplies / rate) * 1e9)
    }
}

/// Working sets of the copies.
const WORKING_SETS: [usize; 5] = [32 << 10, 512 << 10, 4 << 20, 32 << 20, 256 << 20];

/// Bytes of transfers to and from the device.
const TRANSFER: usize = 32 << 20;

/// Measures every device.
///
/// # Errors
/// Whatever a device reports.
pub fn all(devices: &[Device], quick: bool) -> Result<Vec<Ceilings>> {
    let mut found: Vec<Ceilings> = Vec::new();
    for device in devices {
        let mut ceilings = measure(device, quick)?;
        let fewer = |c: &&Ceilings| c.backend == ceilings.backend && c.threads < ceilings.threads;
        for fewer in found.iter().filter(fewer).cloned().collect::<Vec<_>>() {
            ceilings.at_least(&fewer);
        }
        found.push(ceilings);
    }
    Ok(found)
}

/// Measures a device.
///
/// # Errors
/// Whatever the device reports.
pub fn measure(device: &Device, quick: bool) -> Result<Ceilings> {
    let label = device.label();
    let mut found = Ceilings {
        backend: label.backend.into(),
        adapter: label.adapter.clone(),
        threads: label.threads,
        ..Ceilings::default()
    };
    let effort = Effort {
        // Many short samples: one undisturbed one is enough.
        sample: Duration::from_millis(2),
        runs: if quick { 50 } else { 300 },
        least_runs: 5,
        budget: Duration::from_millis(if quick { 200 } else { 1200 }),
    };
    match device.as_gpu() {
        Some(gpu) => of_gpu(&gpu.ceilings(quick)?, &mut found),
        None => {
            let sets = &WORKING_SETS[..if quick { 4 } else { 5 }];
            found.copy = sets.iter().map(|&bytes| copy(device, effort, bytes)).collect::<Result<_>>()?;
            found.multiplies_per_second = Some(multiplies(device, effort)?);
            transfers(device, effort, if quick { TRANSFER / 8 } else { TRANSFER }, &mut found)?;
        }
    }
    Ok(found)
}

/// What the GPU measures of itself.
fn of_gpu(rates: &gpu::Ceilings, found: &mut Ceilings) {
    // Two buffers, one read and one written.
    let bytes = 2.0 * rates.copy_buffer_bytes as f64;
    found.copy = vec![CopyRate { bytes, bytes_per_second: rates.copy_bytes_per_s }];
    found.multiplies_per_second = Some(rates.multiplies_per_s);
    found.high_multiplies_per_second = Some(rates.mul_highs_per_s);
    (found.round_trip_ns, found.dispatch_ns) = (rates.submit_ns, rates.dispatch_ns);
    (found.upload_bytes_per_second, found.readback_bytes_per_second) =
        (rates.upload_bytes_per_s, rates.readback_bytes_per_s);
}

fn seconds(effort: Effort, operation: Operation) -> Result<f64> {
    let samples = interleave(effort, &mut [operation])?;
    Ok(samples[0].least() / 1e9)
}

/// Copies on every thread at once.
fn copy(device: &Device, effort: Effort, bytes: usize) -> Result<CopyRate> {
    let threads = device.label().threads;
    let words = bytes / 2 / 8 / threads;
    let mut buffers: Vec<(Vec<u64>, Vec<u64>)> = (0..threads).map(|_| (vec![1; words], vec![2; words])).collect();
    let time = seconds(
        effort,
        Box::new(|repeats| {
            device.install(|| {
                buffers.par_iter_mut().with_max_len(1).for_each(|(from, to)| {
                    for _ in 0..repeats {
                        black_box(&mut *to).copy_from_slice(black_box(from));
                    }
                });
                Ok(())
            })
        }),
    )?;
    let bytes = (threads * words * 16) as f64;
    Ok(CopyRate { bytes, bytes_per_second: bytes / time })
}

/// Independent low halves of 32-bit products on every thread at once, with the widest vectors there are.
fn multiplies(device: &Device, effort: Effort) -> Result<f64> {
    const ROUNDS: usize = 4096;
    let threads = device.label().threads;
    let run = |lanes: usize, work: fn() -> u32| -> Result<f64> {
        let time = seconds(
            effort,
            Box::new(|repeats| {
                device.install(|| {
                    (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
                        (0..repeats).for_each(|_| _ = black_box(work()));
                    });
                    Ok(())
                })
            }),
        )?;
        Ok((threads * ROUNDS * lanes) as f64 / time)
    };
    // Chains enough to hide the latency, few enough for the registers: which one that is depends on the processor.
    let rates = [run(64, chains::<64, ROUNDS>)?, run(96, chains::<96, ROUNDS>)?, run(192, chains::<192, ROUNDS>)?];
    Ok(rates.into_iter().fold(0.0, f64::max))
}

fn chains<const LANES: usize, const ROUNDS: usize>() -> u32 {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            let factors: [u32; LANES] = black_box(std::array::from_fn(|i| 2 * i as u32 + 3));
            let mut x = factors;
            for _ in 0..ROUNDS {
                for (x, factor) in x.iter_mut().zip(&factors) {
                    *x = x.wrapping_mul(*factor);
                }
            }
            x.iter().fold(0, |sum, x| sum ^ x)
        },
    )
}

/// Small operations and transfers, through the engine.
fn transfers(device: &Device, effort: Effort, bytes: usize, found: &mut Ceilings) -> Result<()> {
    let backend = device.backend();
    let n = 1024;
    let ring = Arc::new(RnsRing::new(n, &ntt_primes(30, n, 1).ok_or("no primes")?)?);
    let shape = Shape { polys: 1, limbs: 1 };
    let x = backend.upload(&vec![1; n])?;
    let add = || backend.add(&ring, &x, &x, shape).map(drop);
    let round_trips: Operation = Box::new(|repeats| {
        (0..repeats).try_for_each(|_| add().and_then(|()| device.wait()))?;
        Ok(())
    });
    let queued: Operation = Box::new(|repeats| {
        // Few enough that the queue's memory stays small.
        for left in (0..repeats).step_by(64) {
            (left..repeats.min(left + 64)).try_for_each(|_| add())?;
            device.wait()?;
        }
        Ok(())
    });
    let small = Effort { sample: Duration::from_millis(2), ..effort };
    let samples = interleave(small, &mut [round_trips, queued])?;
    (found.round_trip_ns, found.dispatch_ns) = (samples[0].median(), samples[1].median());

    let words = vec![7u32; bytes / 4];
    let there = backend.upload(&words)?;
    let up: Operation = Box::new(|repeats| {
        (0..repeats).try_for_each(|_| backend.upload(&words).map(drop))?;
        Ok(device.wait()?)
    });
    let down: Operation = Box::new(|repeats| Ok((0..repeats).try_for_each(|_| backend.download(&there).map(drop))?));
    let samples = interleave(effort, &mut [up, down])?;
    let rate = |ns: f64| bytes as f64 / ns * 1e9;
    (found.upload_bytes_per_second, found.readback_bytes_per_second) =
        (rate(samples[0].median()), rate(samples[1].median()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use heliostat::engine::cpu::NttLibrary;

    use super::*;

    fn known() -> Ceilings {
        let rate = |bytes, bytes_per_second| CopyRate { bytes, bytes_per_second };
        Ceilings {
            copy: vec![rate(1e3, 100e9), rate(1e5, 1e9)],
            multiplies_per_second: Some(10e9),
            ..Ceilings::default()
        }
    }

    #[test]
    fn the_limit_is_the_slower_of_memory_and_arithmetic() {
        let c = known();
        // 1 GB/s at the largest working set and beyond: 1e6 bytes take 1 ms.
        assert_eq!(c.limit_ns(&Cost { bytes: 1e6, multiplies: 1.0 }), Some(1e6));
        assert_eq!(c.limit_ns(&Cost { bytes: 1e6, multiplies: 20e6 }), Some(2e6));
        assert_eq!(Ceilings::default().limit_ns(&Cost { bytes: 1.0, multiplies: 1.0 }), None);
    }

    #[test]
    fn bandwidth_depends_on_the_working_set() {
        let c = known();
        for (bytes, rate) in [(10.0, 100e9), (1e3, 100e9), (1e4, 10e9), (1e5, 1e9), (1e9, 1e9)] {
            let found = c.bandwidth(bytes).unwrap();
            assert!((found / rate - 1.0).abs() < 1e-9, "{bytes}: {found}");
        }
    }

    #[test]
    fn more_threads_have_no_lower_limits() {
        let (fewer, mut more) = (known(), known());
        more.copy[0].bytes_per_second /= 2.0;
        more.multiplies_per_second = Some(11e9);
        more.at_least(&fewer);
        assert_eq!((more.copy, more.multiplies_per_second), (fewer.copy, Some(11e9)));
    }

    #[test]
    fn a_cpu_has_every_rate() {
        let c = measure(&Device::cpu(NttLibrary::default(), 1).unwrap(), true).unwrap();
        let rates = c.copy.iter().map(|rate| rate.bytes_per_second).chain(c.multiplies_per_second);
        assert!(rates.clone().count() == 5 && rates.into_iter().all(|rate| rate.is_finite() && rate > 0.0), "{c:?}");
        assert!(c.round_trip_ns > 0.0 && c.dispatch_ns > 0.0 && c.upload_bytes_per_second > 0.0);
        assert!(c.limit_ns(&Cost { bytes: 1e6, multiplies: 1e6 }).unwrap() > 0.0);
    }
}
