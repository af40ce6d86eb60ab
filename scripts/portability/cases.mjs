// Runs the exported cases with Dawn and compares what comes out: node cases.mjs FOLDER

import fs from 'node:fs';
import path from 'node:path';
import { finish, forBrowser, lacking, open } from './device.mjs';

const POISON = 0x7fc0dead; // a NaN, as in src/step.rs

const folder = process.argv[2];
const opened = await open();
const { device, about } = opened;
console.log(`Dawn on ${about}`);

const { modules, runs } = JSON.parse(fs.readFileSync(path.join(folder, 'manifest.json'), 'utf8'));
// A Buffer of node may start anywhere in its memory, so both are copied to the start of their own.
const bytes = (name) => new Uint8Array(fs.readFileSync(path.join(folder, name))).buffer;
const data = new Uint32Array(bytes('data.bin'));
const expected = new Float64Array(bytes('expected.bin'));

// The first `reads` bindings are read-only, the others read-write, as the engine declares them.
function bindGroupLayout(reads, writes) {
    return device.createBindGroupLayout({
        entries: Array.from({ length: reads + writes }, (_, binding) => ({
            binding,
            visibility: GPUShaderStage.COMPUTE,
            buffer: { type: binding < reads ? 'read-only-storage' : 'storage' },
        })),
    });
}

const pipelines = new Map();

function pipeline(call) {
    if (!pipelines.has(call.module)) {
        const file = path.join(folder, 'modules', `${call.module}.wgsl`);
        const code = forBrowser(fs.readFileSync(file, 'utf8'), modules[call.module]);
        const layout = bindGroupLayout(call.reads.length, call.writes.length);
        const made = device.createComputePipeline({
            layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
            compute: { module: device.createShaderModule({ code }), entryPoint: 'main' },
        });
        pipelines.set(call.module, { made, layout });
    }
    return pipelines.get(call.module);
}

function makeBuffer({ words, fill, at }) {
    const buffer = device.createBuffer({
        size: Math.max(4, 4 * words),
        usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
    });
    if (fill === 'data') {
        device.queue.writeBuffer(buffer, 0, data, at, words);
    } else if (fill === 'poison') {
        device.queue.writeBuffer(buffer, 0, new Uint32Array(words).fill(POISON));
    }
    return buffer;
}

async function read(buffer) {
    const usage = GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ;
    const staging = device.createBuffer({ size: buffer.size, usage });
    const encoder = device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, 0, staging, 0, buffer.size);
    device.queue.submit([encoder.finish()]);
    await staging.mapAsync(GPUMapMode.READ);
    const values = new Float32Array(staging.getMappedRange().slice(0));
    staging.destroy();
    return values;
}

// The first thing wrong with a run, or null.
async function check(run) {
    device.pushErrorScope('validation');
    const buffers = new Map();
    const buffer = (i) => {
        if (!buffers.has(i)) buffers.set(i, makeBuffer(run.buffers[i]));
        return buffers.get(i);
    };
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    for (const call of run.calls) {
        const { made, layout } = pipeline(call);
        const entries = [...call.reads, ...call.writes].map((i, binding) => ({
            binding,
            resource: { buffer: buffer(i) },
        }));
        pass.setPipeline(made);
        pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
        pass.dispatchWorkgroups(...call.grid);
    }
    pass.end();
    device.queue.submit([encoder.finish()]);
    const error = await device.popErrorScope();
    let wrong = error && error.message;
    for (const { buffer: i, name, at, first, count, tolerance } of run.expected) {
        if (wrong) break;
        const got = await read(buffer(i));
        const want = expected.subarray(first, first + count);
        const largest = want.reduce((m, v) => Math.max(m, Math.abs(v)), 1e-30);
        if (!at && run.buffers[i].words !== count) wrong = `${name}: ${count} values expected`;
        for (let k = 0; k < count && !wrong; k += 1) {
            const value = got[at ? at[k] : k];
            // Written so that NaN fails.
            if (!(Math.abs(value - want[k]) <= tolerance * largest)) {
                wrong = `${name}[${at ? at[k] : k}]: ${value} instead of ${want[k]}`;
            }
        }
    }
    for (const made of buffers.values()) made.destroy();
    return wrong;
}

const failures = [];
let passed = 0;
let skipped = 0;
for (const run of runs) {
    if (run.calls.some((call) => lacking(modules[call.module], opened))) {
        skipped += 1;
        continue;
    }
    const wrong = await check(run);
    if (wrong) {
        failures.push(`${run.name} ${JSON.stringify(run.pinned)}\n    ${wrong}`);
    } else {
        passed += 1;
    }
}
finish('dawn', passed, failures, skipped);
