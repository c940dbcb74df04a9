//! What this device can do at most: the yardsticks for kernels. Measured by the clock of the host, each for a while.

use std::time::Instant;

use serde::Serialize;

use super::{
    GpuBackend,
    context::{Context, Launch, Slice},
    memory::Memory,
    shaders::{Kernel, Variant},
};
use crate::engine::backend::Result;

/// Limits of a device, all of them measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// Bytes a second of a kernel that copies 16 bytes an invocation, loads and stores together.
    pub copy_bytes_per_s: f64,
    /// Size of each of the two buffers of that copy, in bytes.
    pub copy_buffer_bytes: u64,
    /// 32-bit multiply-adds (low word) a second.
    pub multiplies_per_s: f64,
    /// High words of 32 x 32-bit products a second, each with an addition, in the backend's product form.
    pub mul_highs_per_s: f64,
    /// Nanoseconds a launch, of many tiny dependent launches in one submission.
    pub dispatch_ns: f64,
    /// Nanoseconds from submitting one tiny launch until the host knows that it is done.
    pub submit_ns: f64,
    /// Bytes a second to the device.
    pub upload_bytes_per_s: f64,
    /// Nanoseconds to upload one word and know that it has arrived.
    pub upload_ns: f64,
    /// Bytes a second from the device to a vector of the host.
    pub readback_bytes_per_s: f64,
    /// Nanoseconds to download one word.
    pub readback_ns: f64,
}

/// Products of one round of `ceiling_products`: 8 chains of 16 steps.
const ROUND_PRODUCTS: u64 = 8 * 16;
/// Rounds an invocation.
const ROUNDS: u32 = 64;
/// Tiny launches in a submission.
const LAUNCHES: usize = 64;

/// How long and how large.
struct Effort {
    /// Seconds that a run lasts at least.
    seconds: f64,
    /// Bytes of a buffer to copy.
    copy_bytes: u64,
    /// Bytes of a transfer.
    transfer_bytes: u64,
}

impl GpuBackend {
    /// Measures the device's limits: for a few seconds, or with `quick` for about one.
    ///
    /// # Errors
    /// Whatever allocating and launching report.
    pub fn ceilings(&self, quick: bool) -> Result<Ceilings> {
        let context = &self.context;
        let software = super::adapter::is_software(&context.info);
        let most = context.pool.budget().map_or(u64::MAX, |budget| budget / 8).min(4 * context.binding_words as u64);
        let effort = Effort {
            seconds: if quick { 0.02 } else { 0.1 },
            // Larger than the last level of cache of any device there is.
            copy_bytes: (match (software, quick) {
                (true, true) => 16 << 20,
                (true, false) => 64 << 20,
                (false, _) => 256 << 20,
            })
            .min(most),
            transfer_bytes: (if software || quick { 8 << 20 } else { 64 << 20 }).min(most),
        };
        let (copy_bytes_per_s, copy_buffer_bytes) = copy(context, &effort)?;
        let (dispatch_ns, submit_ns) = latencies(context, &effort)?;
        let words = vec![1; (effort.transfer_bytes / 4) as usize];
        let upload = |words: &[u32]| {
            time(&effort, || {
                drop(context.upload(OPERATION, words)?);
                context.wait(OPERATION)
            })
        };
        let (upload_seconds, upload_latency) = (upload(&words)?, upload(&words[..1])?);
        let there = context.upload(OPERATION, &words)?;
        let download = |words: usize| time(&effort, || context.download_memory(OPERATION, &there, words).map(drop));
        let (readback_seconds, readback_latency) = (download(words.len())?, download(1)?);
        Ok(Ceilings {
            copy_bytes_per_s,
            copy_buffer_bytes,
            multiplies_per_s: products(context, &effort, false)?,
            mul_highs_per_s: products(context, &effort, true)?,
            dispatch_ns,
            submit_ns,
            upload_bytes_per_s: effort.transfer_bytes as f64 / upload_seconds,
            upload_ns: 1e9 * upload_latency,
            readback_bytes_per_s: effort.transfer_bytes as f64 / readback_seconds,
            readback_ns: 1e9 * readback_latency,
        })
    }
}

const OPERATION: &str = "ceilings";

/// Seconds of one call: the least mean of three runs of as many calls as last long enough, after one call to warm up.
fn time(effort: &Effort, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    let mut run = |calls: u32| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..calls {
            f()?;
        }
        // A clock that does not move would give no rate.
        Ok(start.elapsed().as_secs_f64().max(1e-9))
    };
    let (mut calls, mut seconds) = (1, run(1)?);
    while seconds < effort.seconds && calls < 1 << 20 {
        calls = (calls * 2).max((f64::from(calls) * 0.8 * effort.seconds / seconds) as u32).min(1 << 20);
        seconds = run(calls)?;
    }
    for _ in 0..2 {
        seconds = seconds.min(run(calls)?);
    }
    Ok(seconds / f64::from(calls))
}

fn all(memory: &Memory, bytes: u64) -> Slice<'_> {
    Slice { buffer: memory.buffer(), start: 0, words: (bytes / 4) as usize }
}

/// Copy bandwidth, and the size of the buffers.
fn copy(context: &Context, effort: &Effort) -> Result<(f64, u64)> {
    let bytes = effort.copy_bytes & !255;
    let from = context.allocate(OPERATION, (bytes / 4) as usize)?;
    let to = context.allocate(OPERATION, (bytes / 4) as usize)?;
    let launch = || copy_launch(all(&from, bytes), all(&to, bytes));
    // Several in a submission, so that submitting does not count.
    let seconds = time(effort, || {
        context.run(OPERATION, &[launch(), launch(), launch(), launch()])?;
        context.wait(OPERATION)
    })?;
    Ok((8.0 * bytes as f64 / seconds, bytes))
}

fn copy_launch<'a>(from: Slice<'a>, to: Slice<'a>) -> Launch<'a> {
    let items = to.words / 4;
    Launch {
        variant: Variant::plain(Kernel::CeilingCopy),
        params: vec![items as u32, 0],
        slices: vec![from, to],
        groups: Launch::groups_for(items),
    }
}

/// Products a second.
fn products(context: &Context, effort: &Effort, high: bool) -> Result<f64> {
    // Enough invocations for any device; software finishes a quarter of a second of them.
    let items: usize = if super::adapter::is_software(&context.info) { 1 << 12 } else { 1 << 20 };
    let to = context.allocate(OPERATION, 4 * items)?;
    let variant = product_variant(high);
    let seconds = time(effort, || {
        let launch = Launch {
            variant: variant.clone(),
            params: vec![items as u32, ROUNDS],
            slices: vec![all(&to, 16 * items as u64)],
            groups: Launch::groups_for(items),
        };
        context.run(OPERATION, &[launch])?;
        context.wait(OPERATION)
    })?;
    Ok((items as u64 * u64::from(ROUNDS) * ROUND_PRODUCTS) as f64 / seconds)
}

fn product_variant(high: bool) -> Variant {
    Variant { flags: if high { vec!["HIGH"] } else { Vec::new() }, ..Variant::plain(Kernel::CeilingProducts) }
}

/// Nanoseconds a launch within a submission, and of a submission of one.
fn latencies(context: &Context, effort: &Effort) -> Result<(f64, f64)> {
    let (from, to) = (context.allocate(OPERATION, 1024)?, context.allocate(OPERATION, 1024)?);
    let several = |count: usize| {
        time(effort, || {
            let launches: Vec<_> = (0..count).map(|_| copy_launch(all(&from, 4096), all(&to, 4096))).collect();
            context.run(OPERATION, &launches)?;
            context.wait(OPERATION)
        })
    };
    let (one, many) = (several(1)?, several(1 + LAUNCHES)?);
    Ok((1e9 * (many - one).max(0.0) / LAUNCHES as f64, 1e9 * one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Backend, gpu::GpuOptions};

    fn open() -> GpuBackend {
        GpuBackend::open(0, &GpuOptions::default()).expect("install mesa-vulkan-drivers and libvulkan1")
    }

    #[test]
    fn every_limit_is_a_rate() {
        let backend = open();
        let c = backend.ceilings(true).unwrap();
        let rates = [c.copy_bytes_per_s, c.multiplies_per_s, c.mul_highs_per_s, c.upload_bytes_per_s];
        let times = [c.submit_ns, c.upload_ns, c.readback_bytes_per_s, c.readback_ns];
        assert!(rates.iter().chain(&times).all(|rate| rate.is_finite() && *rate > 0.0), "{c:?}");
        assert!(c.dispatch_ns.is_finite() && c.copy_buffer_bytes > 0, "{c:?}");
        println!("{c:?}");
    }

    /// What is measured is what is meant: the kernels copy, and do as many products as they say.
    #[test]
    fn kernels_do_what_is_measured() {
        let backend = open();
        let context = &backend.context;
        let words: Vec<u32> = (0..1024).collect();
        let from = context.upload(OPERATION, &words).unwrap();
        let to = context.allocate(OPERATION, 1024).unwrap();
        context.run(OPERATION, &[copy_launch(all(&from, 4096), all(&to, 4096))]).unwrap();
        assert_eq!(context.download_memory(OPERATION, &to, 1024).unwrap(), words);
        for high in [false, true] {
            let variant = product_variant(high);
            let launch = Launch { variant, params: vec![256, 3], slices: vec![all(&to, 4096)], groups: 1 };
            context.run(OPERATION, &[launch]).unwrap();
            let found = context.download_memory(OPERATION, &to, 1024).unwrap();
            for i in 0..256u32 {
                let b = [(8, 0x9e37_79b1), (4, 0x85eb_ca6b), (2, 0xc2b2_ae35), (1, 0x27d4_eb2f)]
                    .map(|(k, c): (u32, u32)| c.wrapping_add(k * i));
                for (lane, b) in b.into_iter().enumerate() {
                    let step = |a: u32| {
                        let product = u64::from(a) * u64::from(b);
                        (if high { (product >> 32) as u32 } else { product as u32 }).wrapping_add(b)
                    };
                    let chain = |a: u32| (0..3 * ROUND_PRODUCTS / 8).fold(a, |a, _| step(a));
                    let expected = chain(b.wrapping_add(1)) ^ chain(b.wrapping_add(3));
                    assert_eq!(found[4 * i as usize + lane], expected, "{high} {i} {lane}");
                }
            }
        }
        assert!(backend.memory().live > 0);
    }
}
