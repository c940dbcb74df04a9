//! The device side of the GPU backend: faults, memory within a budget, devices of a host program, zero copy, times, shaders
//! from a folder.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use heliostat::{
    arith::{ShareModulus, sample::SecureRng},
    engine::{
        Backend, Buffer, EngineError, KeySwitchShape, Result, Shape,
        cpu::CpuBackend,
        gpu::{Fault, Faults, GpuBackend, GpuOptions, Lack, ProductForm, wgpu},
    },
    he::{BfvContext, HeClient, HeServer, MATMUL_8192, ParameterSet},
    packing::{ClientMatrix, CoefficientPacking, MatmulSpec, OperandBound},
};

use crate::{open, oracle::Random, ring, suite::laws_in};

fn with_faults() -> (GpuBackend, Faults) {
    let faults = Faults::new();
    (open(&GpuOptions { faults: faults.clone(), ..GpuOptions::default() }), faults)
}

/// An operation of each kind: upload, transform, key switch, download.
fn work(backend: &GpuBackend) -> Result<Vec<u32>> {
    let ring = ring(64, 30, 3);
    let shape = Shape { polys: 2, limbs: 2 };
    let x = backend.upload(&Random(1).batch(&ring, shape))?;
    let key = backend.upload(&Random(2).batch(&ring, Shape { polys: 4, limbs: 3 }))?;
    let there = backend.ntt_forward(&ring, &x, shape)?;
    let back = backend.ntt_inverse(&ring, &there, shape)?;
    backend.download(&backend.key_switch(&ring, &back, KeySwitchShape::full(&ring, 2), &key)?)
}

#[test]
fn any_allocation_may_fail_and_the_next_run_is_right() {
    let (backend, faults) = with_faults();
    let expected = work(&backend).unwrap();
    let mut operations = Vec::new();
    for after in 0.. {
        // A ring is used for the first time in each run, so that its tables are allocated too.
        faults.inject(Fault::OutOfMemory { after });
        match work(&backend) {
            Err(e @ EngineError::OutOfMemory { operation, bytes, .. }) => {
                assert!(bytes > 0, "{e}");
                assert!(e.to_string().starts_with(&format!("{operation}: out of device memory while asking for")));
                operations.push(operation);
            }
            Ok(result) => {
                assert_eq!(result, expected);
                break;
            }
            Err(other) => panic!("{other}"),
        }
        assert_eq!(work(&backend).unwrap(), expected, "after failure {after}");
    }
    for operation in ["upload", "tables of a ring", "ntt_forward", "ntt_inverse", "key_switch"] {
        assert!(operations.contains(&operation), "{operation} never failed: {operations:?}");
    }
}

#[test]
fn a_device_lost_at_any_submission_is_an_error_of_every_later_call() {
    let mut after = 0;
    loop {
        let (backend, faults) = with_faults();
        faults.inject(Fault::DeviceLost { after });
        let Err(e) = work(&backend) else { break };
        assert!(matches!(e, EngineError::DeviceLost { .. }), "{e}");
        for later in [work(&backend).map(drop), backend.upload(&[1]).map(drop), backend.wait()] {
            assert!(matches!(later, Err(EngineError::DeviceLost { .. })), "{later:?}");
        }
        after += 1;
    }
    // Two uploads and four tables, three operations, one download, at least.
    assert!(after >= 10, "{after} submissions");
}

#[test]
fn any_kernel_may_fail_to_build_and_is_built_at_the_next_use() {
    let expected = work(&open(&GpuOptions::default())).unwrap();
    let mut kernels = 0;
    loop {
        let (backend, faults) = with_faults();
        faults.inject(Fault::Validation { after: kernels });
        match work(&backend) {
            Err(e @ EngineError::Validation { .. }) => assert!(e.to_string().contains("injected"), "{e}"),
            Ok(result) => {
                assert_eq!(result, expected);
                break;
            }
            Err(other) => panic!("{other}"),
        }
        assert_eq!(work(&backend).unwrap(), expected);
        kernels += 1;
    }
    assert!(kernels >= 5, "{kernels} kernels");
}

#[test]
fn an_adapter_that_lacks_something_is_refused_or_worked_around() {
    let lacking = |lack: Lack, form: Option<ProductForm>| {
        let faults = Faults::new();
        faults.inject(Fault::Adapter(lack));
        GpuBackend::open(0, &GpuOptions { faults, form, ..GpuOptions::default() })
    };
    let expected = work(&open(&GpuOptions::default())).unwrap();
    let split = lacking(Lack::Int64, None).unwrap();
    assert_eq!(split.info().form, "split16");
    assert_eq!(work(&split).unwrap(), expected);
    let refusals = [
        (lacking(Lack::Int64, Some(ProductForm::U64)), "SHADER_INT64"),
        (lacking(Lack::Invocations(128), None), "256 invocations (its limit is 128)"),
        (lacking(Lack::WorkgroupMemory(32), None), "workgroup memory (its limit is 32)"),
    ];
    for (refusal, why) in refusals {
        match refusal.map(drop) {
            Err(EngineError::Unsupported { operation: "open device", what, .. }) => {
                assert!(what.contains(why), "{what}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(lacking(Lack::Device, None).map(drop), Err(EngineError::NoAdapter { .. })));
}

#[test]
fn memory_stays_within_the_budget_or_is_an_error_that_names_it() {
    let budget = 1 << 20;
    let backend = open(&GpuOptions { vram_bytes: Some(budget), ..GpuOptions::default() });
    let ring = ring(64, 30, 2);
    // Batches of many sizes: without freeing what is kept, the pool would outgrow the budget.
    for polys in (1..200).step_by(7) {
        let shape = Shape { polys, limbs: 2 };
        let words = Random(polys as u64).batch(&ring, shape);
        let x = backend.upload(&words).unwrap();
        let there = backend.ntt_forward(&ring, &x, shape).unwrap();
        drop(x);
        assert_eq!(backend.download(&backend.ntt_inverse(&ring, &there, shape).unwrap()).unwrap(), words);
        let usage = backend.memory();
        assert!(usage.live > 0 && usage.peak <= budget && usage.budget == Some(budget), "{usage:?}");
    }
    let held: Vec<Buffer> = (0..3).map(|_| backend.upload(&vec![1; 1 << 16]).unwrap()).collect();
    match backend.upload(&vec![0; 1 << 16]) {
        Err(e @ EngineError::OutOfMemory { operation: "upload", bytes: 262_144, budget: Some(1_048_576), .. }) => {
            assert!(e.to_string().contains("raise --vram"), "{e}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(backend.download(&held[2]).unwrap(), vec![1; 1 << 16]);
    drop(held);
    assert!(backend.upload(&vec![0; 1 << 17]).is_ok());
    assert!(backend.memory().peak <= budget);
}

/// The digits of a batch of key switches exceed the budget: they are made in parts.
#[test]
fn key_switches_keep_to_a_small_budget() {
    let (budget, polys, ring) = (12 << 20, 100, ring(1024, 30, 6));
    let backend = open(&GpuOptions { vram_bytes: Some(budget), ..GpuOptions::default() });
    let cpu = CpuBackend::new(None);
    let x = Random(1).batch(&ring, Shape { polys, limbs: 5 });
    let key = Random(2).batch(&ring, Shape { polys: 10, limbs: 6 });
    let switch = |backend: &dyn Backend| {
        let (x, key) = (backend.upload(&x).unwrap(), backend.upload(&key).unwrap());
        backend.download(&backend.key_switch(&ring, &x, KeySwitchShape::full(&ring, polys), &key).unwrap()).unwrap()
    };
    assert!(switch(&backend) == switch(&cpu));
    assert!(backend.memory().peak <= budget && polys * 30 * 1024 * 4 > 11 << 20);
}

/// Expanded weights, transforms and key switches of an encrypted product together would exceed the budget.
#[test]
fn an_encrypted_product_keeps_to_a_small_budget() {
    let (budget, rows, inner, cols, max_block) = (40 << 20, 8, 64, 64, 4);
    let gpu = Arc::new(open(&GpuOptions { vram_bytes: Some(budget), ..GpuOptions::default() }));
    let params = ParameterSet::new(MATMUL_8192).unwrap();
    let t = ShareModulus::pow2(32).unwrap();
    let operand = OperandBound::Weights { max_abs: 7 };
    let spec = MatmulSpec { t, heads: 1, rows, inner: vec![inner], cols, operand };
    let packing = CoefficientPacking::with_block(&params, &spec, 64, max_block).unwrap();
    let x: Vec<u64> = (0..rows * inner).map(|i| (i as u64).wrapping_mul(0x9e37_79b9) % (1 << 32)).collect();
    let w: Vec<i64> = (0..inner * cols).map(|i| (i * 11 % 15) as i64 - 7).collect();

    let mut rng = SecureRng::from_os().unwrap();
    let client = HeClient::generate(BfvContext::new(Arc::new(CpuBackend::new(None)), params.clone()), &mut rng);
    let x_encrypted = client.encrypt_matrix(t, &packing.inputs()[0], &x, &mut rng).unwrap();
    let keys = (client.public_key(&mut rng).unwrap(), client.galois_keys(max_block, &mut rng).unwrap());
    let context = BfvContext::new(gpu.clone(), params);
    assert_eq!(context.tile_words() as u64, budget / 32);
    let server = HeServer::new(context, &keys.0, Some(&keys.1)).unwrap();
    let (response, mask) = packing.multiply(&server, &[(&x_encrypted, &w)], &mut rng).unwrap();
    let share = client.decrypt_matrix(&packing, &response).unwrap();
    for (k, (&c, &z)) in share.iter().zip(&mask).enumerate() {
        let (i, o) = (k / cols, k % cols);
        let expected = (0..inner).fold(0, |sum, j| t.add(sum, t.mul(x[i * inner + j], t.from_signed(w[j * cols + o]))));
        assert_eq!(t.add(c, z), expected, "({i}, {o})");
    }
    let usage = gpu.memory();
    assert!(usage.peak <= budget && usage.peak > budget / 4, "{usage:?}");
    let boundless = BfvContext::new(Arc::new(open(&GpuOptions::default())), server.context().params().clone());
    assert!(boundless.tile_words() as u64 > budget / 32);
}

/// A device that the test opens as a host program would, with what WebGPU promises everywhere and 64-bit integers if asked.
fn host_device(features: wgpu::Features, limits: wgpu::Limits) -> (wgpu::Device, wgpu::Queue) {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap();
    let descriptor =
        wgpu::DeviceDescriptor { required_features: features, required_limits: limits, ..Default::default() };
    pollster::block_on(adapter.request_device(&descriptor)).unwrap()
}

#[test]
fn laws_hold_on_a_device_of_the_host() {
    let (device, queue) = host_device(wgpu::Features::empty(), wgpu::Limits::default());
    let backend = GpuBackend::with_device(device.clone(), queue.clone(), &GpuOptions::default()).unwrap();
    assert_eq!(backend.info().form, "split16");
    laws_in(&backend, &ring(64, 30, 3));

    let (device, queue) = host_device(wgpu::Features::SHADER_INT64, wgpu::Limits::default());
    let backend = GpuBackend::with_device(device, queue, &GpuOptions::default()).unwrap();
    assert_eq!(backend.info().form, "u64");
    laws_in(&backend, &ring(64, 30, 3));
}

#[test]
fn a_host_device_that_lacks_something_is_refused() {
    let (device, queue) = host_device(wgpu::Features::empty(), wgpu::Limits::downlevel_defaults());
    match GpuBackend::with_device(device, queue, &GpuOptions::default()).map(drop) {
        Err(EngineError::Unsupported { what, .. }) => assert!(what.contains("storage buffers"), "{what}"),
        other => panic!("{other:?}"),
    }
    let (device, queue) = host_device(wgpu::Features::empty(), wgpu::Limits::default());
    let options = GpuOptions { form: Some(ProductForm::U64), ..GpuOptions::default() };
    match GpuBackend::with_device(device, queue, &options).map(drop) {
        Err(EngineError::Unsupported { what, .. }) => assert!(what.contains("SHADER_INT64"), "{what}"),
        other => panic!("{other:?}"),
    }
}

/// Errors of the backend stay in it, and its faults leave the host's device alive.
#[test]
fn host_and_backend_do_not_see_each_others_errors() {
    let (device, queue) = host_device(wgpu::Features::empty(), wgpu::Limits::default());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let report = Arc::clone(&seen);
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| report.lock().unwrap().push(error.to_string())));
    let faults = Faults::new();
    let options = GpuOptions { faults: faults.clone(), ..GpuOptions::default() };
    let backend = GpuBackend::with_device(device.clone(), queue.clone(), &options).unwrap();
    let expected = work(&backend).unwrap();

    let broken = wgpu::BufferDescriptor {
        label: None,
        size: 4,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE,
        mapped_at_creation: false,
    };
    let _ = device.create_buffer(&broken);
    assert_eq!(seen.lock().unwrap().len(), 1);
    assert_eq!(work(&backend).unwrap(), expected);
    // A kernel that the backend has not built yet.
    faults.inject(Fault::Validation { after: 0 });
    let x = backend.upload(&[1; 64]).unwrap();
    let (small, shape) = (ring(64, 30, 1), Shape { polys: 1, limbs: 1 });
    assert!(matches!(backend.add(&small, &x, &x, shape), Err(EngineError::Validation { .. })));
    assert_eq!(seen.lock().unwrap().len(), 1);

    faults.inject(Fault::DeviceLost { after: 0 });
    assert!(matches!(backend.download(&x), Err(EngineError::DeviceLost { .. })));
    let second = GpuBackend::with_device(device, queue, &GpuOptions::default()).unwrap();
    assert_eq!(work(&second).unwrap(), expected);
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[test]
fn a_lost_host_device_is_an_error() {
    let (device, queue) = host_device(wgpu::Features::empty(), wgpu::Limits::default());
    let backend = GpuBackend::with_device(device.clone(), queue, &GpuOptions::default()).unwrap();
    let x = backend.upload(&[1; 64]).unwrap();
    device.destroy();
    // Nobody has told the backend: it finds out when it reads back.
    assert!(matches!(backend.download(&x), Err(EngineError::DeviceLost { .. })));
    assert!(matches!(backend.upload(&[1]), Err(EngineError::DeviceLost { .. })));
    let (device, queue) = host_device(wgpu::Features::empty(), wgpu::Limits::default());
    let backend = GpuBackend::with_device(device, queue, &GpuOptions::default()).unwrap();
    backend.report_loss("gone");
    match backend.upload(&[1]) {
        Err(EngineError::DeviceLost { reason, .. }) => assert_eq!(reason, "gone"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn buffers_go_in_and_out_without_a_copy() {
    let (device, queue) = host_device(wgpu::Features::empty(), wgpu::Limits::default());
    let backend = GpuBackend::with_device(device.clone(), queue.clone(), &GpuOptions::default()).unwrap();
    let (ring, shape) = (ring(64, 30, 1), Shape { polys: 1, limbs: 1 });
    let words: Vec<u32> = (0..64).collect();
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let make = |usage| {
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size: 256, usage, mapped_at_creation: false })
    };
    let of_host = make(usage);
    queue.write_buffer(&of_host, 0, &words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
    let live = backend.memory().live;
    let x = backend.import(of_host.clone(), 64).unwrap();
    assert_eq!(backend.memory().live, live);
    let twice = backend.add(&ring, &x, &x, shape).unwrap();
    assert_eq!(backend.download(&twice).unwrap(), words.iter().map(|w| 2 * w).collect::<Vec<_>>());
    assert_eq!(backend.export(&x).unwrap(), (of_host.clone(), 64));

    // Memory that the host keeps is not reused for the next buffer of its size.
    let (exported, length) = backend.export(&twice).unwrap();
    assert_eq!(length, 64);
    drop(twice);
    let next = backend.add(&ring, &x, &x, shape).unwrap();
    assert_ne!(backend.export(&next).unwrap().0, exported);

    assert!(matches!(backend.import(of_host, 65), Err(EngineError::Shape { .. })));
    assert!(matches!(backend.import(make(wgpu::BufferUsages::STORAGE), 64), Err(EngineError::Shape { .. })));
    let elsewhere = open(&GpuOptions::default());
    assert!(elsewhere.export(&next).is_none() && elsewhere.export(&elsewhere.upload(&[]).unwrap()).is_none());
}

#[test]
fn laws_hold_with_and_without_copies() {
    for zero_copy in [true, false] {
        let backend = open(&GpuOptions { zero_copy: Some(zero_copy), ..GpuOptions::default() });
        [ring(64, 30, 3), ring(512, 27, 2), ring(4096, 30, 1)].iter().for_each(|ring| laws_in(&backend, ring));
        // Only copies need staging.
        assert_eq!(backend.memory().staging == 0, zero_copy, "{:?}", backend.memory());
    }
}

/// A thread that maps a buffer keeps others from using it only as long as it reads.
#[test]
fn threads_share_buffers_that_are_read_back() {
    for zero_copy in [true, false] {
        let backend = open(&GpuOptions { zero_copy: Some(zero_copy), ..GpuOptions::default() });
        let (ring, shape) = (ring(4096, 30, 1), Shape { polys: 2, limbs: 1 });
        let x = backend.upload(&vec![3; 8192]).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        let sum = backend.add(&ring, &x, &x, shape).unwrap();
                        assert!(backend.download(&x).unwrap().iter().all(|&word| word == 3));
                        assert!(backend.download(&sum).unwrap().iter().all(|&word| word == 6));
                    }
                });
            }
        });
    }
}

#[test]
fn released_memory_is_gone_and_what_is_in_use_stays() {
    let backend = open(&GpuOptions::default());
    let kept = backend.upload(&[7; 5000]).unwrap();
    drop(backend.upload(&[8; 50_000]).unwrap());
    assert!(backend.memory().pooled >= 200_000);
    backend.release().unwrap();
    let usage = backend.memory();
    assert!(usage.pooled == 0 && usage.live >= 20_000, "{usage:?}");
    assert_eq!(backend.download(&kept).unwrap(), [7; 5000]);
}

#[test]
fn launches_are_timed_by_kernel_when_asked() {
    let backend = open(&GpuOptions { timestamps: true, ..GpuOptions::default() });
    let expected = work(&open(&GpuOptions::default())).unwrap();
    assert_eq!(work(&backend).unwrap(), expected);
    let times = backend.take_times().unwrap();
    assert_eq!(times.iter().map(|t| t.launches).sum::<u64>(), backend.dispatches());
    assert!(times.iter().all(|t| t.nanoseconds.is_finite() && t.nanoseconds >= 0.0), "{times:?}");
    assert!(times.iter().any(|t| t.kernel == "forward_block" && t.launches >= 2), "{times:?}");
    assert_eq!(backend.take_times().unwrap(), []);

    // More launches than there are timestamps.
    let (ring, shape) = (ring(16, 30, 1), Shape { polys: 1, limbs: 1 });
    let x = backend.upload(&[1; 16]).unwrap();
    (0..600).for_each(|_| drop(backend.add(&ring, &x, &x, shape).unwrap()));
    let times = backend.take_times().unwrap();
    assert_eq!((times.len(), times[0].kernel, times[0].launches), (1, "add", 600));

    let untimed = open(&GpuOptions::default());
    work(&untimed).unwrap();
    assert_eq!(untimed.take_times().unwrap(), []);
}

/// Shaders are read from a folder, again when they change; a broken one says where and is used again once it is mended.
#[test]
fn shaders_of_a_folder_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    std::fs::create_dir(folder.path().join("lib")).unwrap();
    for path in ["", "lib"] {
        for entry in std::fs::read_dir(built_in.join(path)).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_file() {
                std::fs::copy(&entry, folder.path().join(path).join(entry.file_name().unwrap())).unwrap();
            }
        }
    }
    let shader_dir = Some(folder.path().to_owned());
    let backend = open(&GpuOptions { shader_dir, ..GpuOptions::default() });
    let (ring, shape) = (ring(64, 30, 1), Shape { polys: 1, limbs: 1 });
    let x = backend.upload(&[3; 64]).unwrap();
    let sum = || backend.download(&backend.add(&ring, &x, &x, shape)?);
    assert_eq!(sum().unwrap(), [6; 64]);

    let modular = folder.path().join("lib/modular.wgsl");
    let original = std::fs::read_to_string(&modular).unwrap();
    let declaration = "fn add_mod(a: u32, b: u32, p: u32) -> u32 {";
    let line = 1 + original.lines().position(|line| line == declaration).unwrap();
    let with = |text: &str| std::fs::write(&modular, original.replace(declaration, text)).unwrap();
    with(&format!("{declaration} if (p > 0u) {{ return 7u; }}"));
    assert_eq!(sum().unwrap(), [7; 64]);
    let refused = |text: &str, why: &str| {
        with(text);
        for _ in 0..2 {
            match sum() {
                Err(EngineError::Validation { operation: "add", reason }) => assert!(reason.contains(why), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
    };
    refused("fn add_mod(a: u32, b: u32, p: u32) -> u32 ? {", &format!("lib/modular.wgsl:{line}: "));
    refused(&format!("{declaration} return missing;"), &format!("lib/modular.wgsl:{line}: "));
    refused(&format!("#unknown\n{declaration}"), &format!("lib/modular.wgsl:{line}: cannot read the directive"));
    with(declaration);
    assert_eq!(sum().unwrap(), [6; 64]);
    std::fs::remove_file(modular).unwrap();
    match sum() {
        Err(EngineError::Validation { reason, .. }) => assert!(reason.contains("lib/modular.wgsl"), "{reason}"),
        other => panic!("{other:?}"),
    }
}
