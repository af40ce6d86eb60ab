// Compiles every exported module with Tint: node tint.mjs FOLDER
// Tint analyses uniformity, which naga does not: a barrier or a subgroup operation that not all
// invocations may reach is an error here and in every browser. Dawn's null backend does no more
// than that; what Tint makes of a module is compiled where cases.mjs runs it.

import fs from 'node:fs';
import path from 'node:path';
import { finish, forBrowser, lacking, open } from './device.mjs';

// Must be refused, or this check checks nothing.
const CONTROL = `
@group(0) @binding(0) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(8)
fn main(@builtin(local_invocation_index) lane: u32) {
    if out[lane] > 2u {
        workgroupBarrier();
    }
    out[lane] = lane;
}`;

const folder = process.argv[2];
const opened = await open(['backend=null']);
const { device } = opened;

// What Tint says against a source, errors and warnings; and what comes after it, if a pipeline
// cannot be made.
async function complaints(code) {
    device.pushErrorScope('validation');
    const module = device.createShaderModule({ code });
    const said = [...(await module.getCompilationInfo()).messages]
        .filter((m) => m.type !== 'info')
        .map((m) => `${m.type} in line ${m.lineNum}: ${m.message}`);
    if (said.length === 0) {
        device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: 'main' } });
    }
    const error = await device.popErrorScope();
    if (error && said.length === 0) said.push(error.message);
    return said;
}

const failures = [];
let passed = 0;
let skipped = 0;
if ((await complaints(CONTROL)).length === 0) {
    failures.push('a barrier under non-uniform control flow is not refused: this check is blind');
}
const { modules } = JSON.parse(fs.readFileSync(path.join(folder, 'manifest.json'), 'utf8'));
for (const [number, module] of modules.entries()) {
    // Translated whatever the lanes of the device: nothing runs here.
    if (lacking(module, { ...opened, smallest: Infinity })) {
        skipped += 1;
        continue;
    }
    const source = fs.readFileSync(path.join(folder, 'modules', `${number}.wgsl`), 'utf8');
    const said = await complaints(forBrowser(source, module));
    if (said.length === 0) {
        passed += 1;
    } else {
        failures.push(`${module.path} ${module.constants}\n    ${said.join('\n    ')}`);
    }
}
finish('tint', passed, failures, skipped);
