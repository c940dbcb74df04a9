//! Two quick gauges of this machine, beside which the figures of a report can be read, and the memory used.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{ReportError, fields::Calibration};
use crate::{
    engine::{Backend, Shape},
    mpc::{block::Block, prg::Prg},
    protocol::parameter_set,
};

/// How long each gauge runs.
const TIME: Duration = Duration::from_millis(60);

/// Measures AES blocks a second on one thread, and microseconds for a transform of one limb in a batch on `backend` with the
/// protocol's ring. Takes under half a second on a CPU.
///
/// # Errors
/// A failing device.
pub fn calibration(backend: &dyn Backend) -> Result<Calibration, ReportError> {
    Ok(Calibration { aes_blocks_per_s: aes_blocks_per_s(), ntt_us: ntt_us(backend)? })
}

fn aes_blocks_per_s() -> f64 {
    let mut prg = Prg::new(Block::ZERO);
    let mut blocks = vec![Block::ZERO; 1 << 14];
    prg.fill_blocks(&mut blocks);
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        prg.fill_blocks(&mut blocks);
        std::hint::black_box(&blocks);
        count += blocks.len();
    }
    count as f64 / start.elapsed().as_secs_f64()
}

fn ntt_us(backend: &dyn Backend) -> Result<f64, ReportError> {
    let params = parameter_set()?;
    let ring: Arc<_> = params.ring().clone();
    let shape = Shape { polys: 16, limbs: params.limbs() };
    let words = shape.polys * shape.limbs * ring.n();
    let x = backend.upload(&vec![1; words])?;
    // Warms tables and pipelines up; downloading waits for the device.
    backend.download(&backend.ntt_forward(&ring, &x, shape)?)?;
    let (start, mut count) = (Instant::now(), 0);
    let mut last = x;
    while start.elapsed() < TIME {
        // A few at a time: a device queues launches faster than it runs them.
        for _ in 0..4 {
            last = backend.ntt_forward(&ring, &last, shape)?;
            count += shape.polys * shape.limbs;
        }
        backend.download(&last)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / count as f64)
}

/// Largest resident memory of this process so far, in bytes, where the system tells it.
pub fn peak_rss_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::CpuBackend;

    #[test]
    fn gauges_give_numbers() {
        let c = calibration(&CpuBackend::new(Some(1))).unwrap();
        assert!(c.aes_blocks_per_s > 1e4 && c.ntt_us > 0.0 && c.ntt_us.is_finite());
        if cfg!(target_os = "linux") {
            assert!(peak_rss_bytes().unwrap() > 1 << 20);
        }
    }
}
