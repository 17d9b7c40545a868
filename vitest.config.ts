/**
 * The tests in four projects by what they need: `unit` computes, `integration` opens sockets and starts processes,
 * `simulation` computes for seconds (seeds against models, days of a broker, damaged images), `fault` breaks processes
 * and disks and waits for real time. A unit test that opens a socket or starts a process fails (test/unit.ts), which
 * keeps these lists complete.
 */
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { configDefaults, defineConfig } from 'vitest/config'

const packageNames = ['protocol', 'client', 'server']

const INTEGRATION = [
  'packages/client/src/transport.test.ts',
  // It measures the memory of its process, so it needs a process without other tests.
  'packages/server/src/memory.test.ts',
  'test/{integration,docs}/**/*.test.ts',
  'test/demo/demo.test.ts',
  'test/store/store.test.ts',
]
const SIMULATION = [
  'packages/server/src/log/{crash,damage}.test.ts',
  'packages/server/src/broker/{budget,compaction,entry-max,groups,readers-model,replays,restart,schedule-year,streams}.test.ts',
  'packages/server/src/queue/{ids,model}.test.ts',
  'packages/server/src/state/{cold-chunks,cold-shared,definitions,page-tree,shared-batches,space,sparse-copies,traits}.test.ts',
  'test/conformance/fuzz.test.ts',
  'test/{simulation,reference}/**/*.test.ts',
]
const FAULT = ['packages/server/src/log/lock.test.ts', 'test/fault/**/*.test.ts']
const DIST = [...configDefaults.exclude, '**/dist/**']

function project(name: string, include: readonly string[]) {
  return {
    extends: true as const,
    test: { name, include: [...include], exclude: DIST, setupFiles: ['./test/expect.ts'] },
  }
}

export default defineConfig({
  resolve: {
    alias: packageNames.map((name) => ({
      find: new RegExp(`^@sluice/${name}$`),
      replacement: fileURLToPath(new URL(`packages/${name}/src/index.ts`, import.meta.url)),
    })),
  },
  test: {
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: ['packages/*/src/**/*.test.ts', 'test/**/*.test.ts'],
          exclude: [...DIST, ...INTEGRATION, ...SIMULATION, ...FAULT],
          setupFiles: ['./test/expect.ts', './test/unit.ts'],
          // Modules are loaded once per worker, not once per file.
          isolate: false,
        },
      },
      project('integration', INTEGRATION),
      project('simulation', SIMULATION),
      project('fault', FAULT),
    ],
    pool: 'forks',
    // The default leaves one processor idle: half of a machine with two.
    maxWorkers: availableParallelism(),
    // Tests allocate a lot that dies soon: with the default of 16 MiB a tenth of the time is garbage collection.
    execArgv: ['--max-semi-space-size=32'],
    testTimeout: process.env['SLUICE_LONG'] === undefined ? 30_000 : 12 * 3_600_000,
    hookTimeout: 30_000,
    reporters: ['default', './test/reporter.ts'],
    coverage: {
      provider: 'v8',
      include: ['packages/*/src/**/*.ts'],
      exclude: ['**/*.test.ts'],
    },
  },
})
