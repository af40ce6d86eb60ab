//! What a program does that uses the engine as a library.

use oddgrad::gpu::{Gpu, list_adapters};
use oddgrad::graph::{DType, Graph};
use oddgrad::ops::rms_norm::rms_norm;
use oddgrad::program::{Program, Store};
use oddgrad::wgpu;
use std::rc::Rc;

/// A device as another part of a program might have opened it.
fn device(limits: wgpu::Limits) -> (wgpu::Adapter, wgpu::Device, wgpu::Queue) {
    let adapter = list_adapters(None).into_iter().next().expect("tests need an adapter");
    let request = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&request)).unwrap();
    (adapter, device, queue)
}

#[test]
fn library_computes_on_a_device_of_the_callers() {
    let (adapter, device, queue) = device(wgpu::Limits::default());
    let gpu = Rc::new(Gpu::from_wgpu(&adapter, device.clone(), queue).unwrap());
    assert_eq!(gpu.info().name, adapter.get_info().name);
    assert!(!gpu.target().subgroups && !gpu.target().f16 && gpu.target().cooperative.is_empty());

    let mut g = Graph::new(gpu.target());
    let x = g.input("x", &[2, 2], DType::F32);
    let weight = g.constant("weight", &[2], &[1.0, 10.0]);
    let y = rms_norm(&mut g, x, weight, 0.0);
    g.output(y);
    let program = Program::new(&gpu, g, &Store::new(&gpu)).unwrap();
    program.write(x, &[3.0, 3.0, -1.0, 7.0]);
    program.run();
    for (got, want) in program.read(y).unwrap().iter().zip([1.0, 10.0, -0.2, 14.0]) {
        assert!((got - want).abs() < 1e-5, "{got} instead of {want}");
    }
    // The device is still the caller's.
    drop((program, gpu));
    let _more = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 4,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
}

#[test]
fn library_names_every_limit_that_is_too_low() {
    let limits = wgpu::Limits {
        max_storage_buffers_per_shader_stage: 4,
        max_compute_workgroups_per_dimension: 1000,
        ..wgpu::Limits::default()
    };
    let (adapter, device, queue) = device(limits);
    let error = Gpu::from_wgpu(&adapter, device, queue).err().expect("too low").to_string();
    for part in ["max_storage_buffers_per_shader_stage: is 4; request at least 8", "is 1000"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("max_compute_workgroup_size_x"), "{error}");
}

/// The README shows the example that the documentation runs.
#[test]
fn library_readme_shows_the_documented_example() {
    let file = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let docs = file("src/lib.rs");
    let documented: Vec<&str> = docs
        .lines()
        .skip_while(|line| *line != "//! ```")
        .skip(1)
        .take_while(|line| *line != "//! ```")
        .map(|line| line.trim_start_matches("//!").trim_start_matches(' '))
        .filter(|line| !line.starts_with("# "))
        .collect();
    let readme = file("README.md");
    let (_, shown) = readme.split_once("```rust\n").expect("the README has Rust in it");
    let (shown, _) = shown.split_once("\n```").unwrap();
    let shown: Vec<&str> = shown.lines().map(str::trim_start).collect();
    assert!(documented.len() > 20);
    assert_eq!(shown, documented.iter().map(|line| line.trim_start()).collect::<Vec<_>>());
}
