// Opens a device of Dawn, the WebGPU implementation of Chromium, through the npm package `webgpu`,
// whose folder the variable WEBGPU_PACKAGE names.

import path from 'node:path';
import { pathToFileURL } from 'node:url';

// `options` are Dawn's, as in ['backend=null'].
export async function open(options = []) {
    const entry = path.join(process.env.WEBGPU_PACKAGE, 'index.js');
    const { create, globals } = await import(pathToFileURL(entry).href);
    Object.assign(globalThis, globals);
    const gpu = create(options);
    const adapter = await gpu.requestAdapter();
    if (!adapter) {
        throw new Error('Dawn finds no adapter it accepts');
    }
    const wanted = ['subgroups', 'shader-f16'].filter((f) => adapter.features.has(f));
    const subgroups = wanted.includes('subgroups');
    const device = await adapter.requestDevice({
        requiredFeatures: wanted,
        requiredLimits: {
            maxStorageBufferBindingSize: adapter.limits.maxStorageBufferBindingSize,
            maxBufferSize: adapter.limits.maxBufferSize,
        },
    });
    const { description, device: name, subgroupMinSize, subgroupMaxSize } = adapter.info;
    const lanes = subgroups ? `${subgroupMinSize}..${subgroupMaxSize}` : 'no';
    const about = `${description || name}, subgroups ${lanes}`;
    // The object that `create` made must live as long as its device.
    return { gpu, device, subgroups, smallest: subgroups ? subgroupMinSize : 0, about };
}

// Tint wants the extension named, naga does not know it: files do not carry it.
export function forBrowser(source, module) {
    return module.subgroups ? `enable subgroups;\n${source}` : source;
}

// Why the device cannot run a module, or null.
export function lacking(module, { device, subgroups, smallest }) {
    if (module.subgroups && !subgroups) return 'no subgroups';
    if (module.lanes > smallest) return `subgroups of ${module.lanes}`;
    if (module.f16 && !device.features.has('shader-f16')) return 'no f16';
    // naga's extension has no counterpart in WebGPU.
    if (module.cooperative) return 'no cooperative matrices';
    if (module.invocations > device.limits.maxComputeInvocationsPerWorkgroup) {
        return `${module.invocations} invocations`;
    }
    if (module.workgroup_bytes > device.limits.maxComputeWorkgroupStorageSize) {
        return `${module.workgroup_bytes} bytes of workgroup memory`;
    }
    return null;
}

// Prints the failures and the line that scripts/portability.sh reads; ends the process, because
// Dawn's threads would keep it alive.
export function finish(what, passed, failures, skipped = 0) {
    for (const failure of failures.slice(0, 40)) console.log(failure);
    if (failures.length > 40) console.log(`... and ${failures.length - 40} more`);
    console.log(`${what}: ${passed} passed, ${failures.length} failed, ${skipped} skipped`);
    process.exit(failures.length === 0 && passed > 0 ? 0 : 1);
}
