//! A program with a wgpu device of its own shares it with the engine: its kernel writes polynomials, the engine multiplies them,
//! its other kernel reads the product. Nothing is copied between the two. Compared with the engine's CPU backend.
//!
//!     cargo run --release --example host_device -- [ADAPTER]
//!
//! Takes the first adapter whose name contains ADAPTER, or the first one. Needs one; a software adapter will do.

use std::sync::Arc;

use heliostat::engine::{
    Coeff, Engine, Poly,
    gpu::{
        GpuBackend, GpuOptions,
        wgpu::{self, BufferUsages},
    },
};

type Failure = Box<dyn std::error::Error>;

const N: usize = 4096;
const POLYS: usize = 8;
const SEED: u32 = 2_654_435_761;

/// The host's kernels: `fill` makes residues modulo `p`, `fold` adds the words of each polynomial in `Z_(2^32)`.
const KERNELS: &str = "
    struct Sizes { n: u32, count: u32, p: u32, seed: u32 }
    @group(0) @binding(0) var<uniform> sizes: Sizes;
    @group(0) @binding(1) var<storage, read_write> words: array<u32>;
    @group(0) @binding(2) var<storage, read_write> sums: array<u32>;

    @compute @workgroup_size(64) fn fill(@builtin(global_invocation_id) id: vec3<u32>) {
        if (id.x < sizes.count) { words[id.x] = (id.x * sizes.seed) % sizes.p; sums[0] = 0u; }
    }
    @compute @workgroup_size(64) fn fold(@builtin(global_invocation_id) id: vec3<u32>) {
        if (id.x >= sizes.count / sizes.n) { return; }
        var sum = 0u;
        for (var i = 0u; i < sizes.n; i++) { sum += words[id.x * sizes.n + i]; }
        sums[id.x] = sum;
    }";

fn main() -> Result<(), Failure> {
    run(&std::env::args().nth(1).unwrap_or_default())
}

/// The example on the first adapter whose name contains `named`.
pub fn run(named: &str) -> Result<(), Failure> {
    let host = Host::open(named)?;

    // The engine works on the host's device. The host keeps the backend to pass buffers in and out.
    let gpu = Arc::new(GpuBackend::with_device(host.device.clone(), host.queue.clone(), &GpuOptions::default())?);
    let engine = Engine::on_device(Arc::clone(&gpu));
    println!("{}: {}", engine.info().kind, engine.reason());
    let ring = engine.ring(N, 30, 1)?;
    let p = ring.moduli()[0].value();

    // The host writes, the engine computes, the host reads.
    let words = host.buffer(4 * N * POLYS, BufferUsages::COPY_DST | BufferUsages::COPY_SRC | BufferUsages::STORAGE);
    let sums = host.buffer(4 * POLYS, BufferUsages::COPY_SRC | BufferUsages::STORAGE);
    host.run("fill", [N as u32, (N * POLYS) as u32, p, SEED], &words, &sums, N * POLYS);
    let x = Poly::<Coeff>::from_buffer(&engine, &ring, 1, gpu.import(words, N * POLYS)?)?;
    let square = x.forward()?;
    let square = square.mul(&square)?.inverse()?;
    let (product, length) = gpu.export(square.buffer()).ok_or("the product is not on the host's device")?;
    host.run("fold", [N as u32, length as u32, p, SEED], &product, &sums, POLYS);
    let found = host.read(&sums, POLYS)?;

    // The same on the CPU.
    let cpu = Engine::cpu();
    let words: Vec<u32> = (0..(N * POLYS) as u32).map(|i| i.wrapping_mul(SEED) % p).collect();
    let x = Poly::<Coeff>::upload(&cpu, &ring, 1, &words)?.forward()?;
    let product = x.mul(&x)?.inverse()?.download()?;
    let expected: Vec<u32> =
        product.chunks(N).map(|poly| poly.iter().fold(0, |sum: u32, &word| sum.wrapping_add(word))).collect();
    if found != expected {
        return Err(format!("the host's device gives {found:?}, the CPU {expected:?}").into());
    }
    println!("verified: sums over {POLYS} products from a shared buffer equal the CPU's");
    Ok(())
}

/// What a program with a GPU has anyway.
struct Host {
    device: wgpu::Device,
    queue: wgpu::Queue,
}

impl Host {
    fn open(named: &str) -> Result<Self, Failure> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
        let fits = |a: &wgpu::Adapter| a.get_info().name.to_lowercase().contains(&named.to_lowercase());
        let adapter = found.into_iter().find(fits).ok_or_else(|| {
            format!(
                "no adapter {named:?}: this example needs a GPU with a Vulkan, Metal or DX12 driver, or Mesa's llvmpipe"
            )
        })?;
        println!("the host's adapter is {}", adapter.get_info().name);
        // The engine uses what the host asks for: 64-bit integers and immediates where there are any make it faster.
        let wanted = wgpu::Features::SHADER_INT64 | wgpu::Features::IMMEDIATES;
        let descriptor = wgpu::DeviceDescriptor {
            required_features: wanted & adapter.features(),
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
        Ok(Self { device, queue })
    }

    fn buffer(&self, size: usize, usage: BufferUsages) -> wgpu::Buffer {
        let size = size as u64;
        self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    }

    fn run(&self, kernel: &str, sizes: [u32; 4], words: &wgpu::Buffer, sums: &wgpu::Buffer, items: usize) {
        let uniform = self.buffer(16, BufferUsages::UNIFORM | BufferUsages::COPY_DST);
        self.queue.write_buffer(&uniform, 0, bytemuck::cast_slice(&sizes));
        let source = wgpu::ShaderSource::Wgsl(KERNELS.into());
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some(kernel),
            compilation_options: Default::default(),
            cache: None,
        });
        let entries = [(0, &uniform), (1, words), (2, sums)]
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() });
        let layout = pipeline.get_bind_group_layout(0);
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries };
        let group = self.device.create_bind_group(&descriptor);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups((items as u32).div_ceil(64), 1, 1);
        }
        self.queue.submit([encoder.finish()]);
    }

    fn read(&self, buffer: &wgpu::Buffer, words: usize) -> Result<Vec<u32>, Failure> {
        let bytes = 4 * words as u64;
        let staging = self.buffer(4 * words, BufferUsages::MAP_READ | BufferUsages::COPY_DST);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, bytes);
        self.queue.submit([encoder.finish()]);
        let (sender, receiver) = std::sync::mpsc::channel();
        staging.slice(..).map_async(wgpu::MapMode::Read, move |result| drop(sender.send(result)));
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        receiver.recv()??;
        let view = staging.slice(..).get_mapped_range()?;
        Ok(bytemuck::pod_collect_to_vec(&view))
    }
}
