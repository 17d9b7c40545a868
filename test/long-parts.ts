/** The parts of the long mode. Each part is one command and takes a few minutes. */
import { fileURLToPath } from 'node:url'

export interface Part {
  readonly name: string
  /** Environment variables besides SLUICE_LONG. */
  readonly env: Readonly<Record<string, string>>
  readonly file: string
  /** Selects tests by a part of their names; without it the whole file runs. */
  readonly only?: string
}

/** The folder in which the commands run. */
export const ROOT = fileURLToPath(new URL(import.meta.url.endsWith('.ts') ? '..' : '../..', import.meta.url))

function seeds(name: string, file: string, only: string, first: number, count: number, each: number): Part[] {
  return Array.from({ length: count / each }, (_, i) => {
    const from = first + i * each
    const range = `${from}-${from + each - 1}`
    return { name: `${name}-${range}`, env: { SLUICE_SEEDS: range }, file, only }
  })
}

/** `count` parts of the same file, each with random seeds. */
function times(name: string, count: number, file: string): Part[] {
  return Array.from({ length: count }, (_, i) => ({ name: `${name}-${i + 1}`, env: {}, file }))
}

function once(name: string, file: string, only?: string): Part {
  return { name, env: {}, file, ...(only === undefined ? {} : { only }) }
}

const SIMULATION = 'test/simulation'
const QUEUE = 'packages/server/src/queue'

export const PARTS: readonly Part[] = [
  once('defects-simulation', `${SIMULATION}/defects.test.ts`),
  once('defects-storage', `${SIMULATION}/storage-defects.test.ts`),
  once('defects-reference', 'test/reference/defects.test.ts'),
  ...seeds('world', `${SIMULATION}/world.test.ts`, 'keeps its promises', 1, 3_000, 100),
  ...seeds('same-again', `${SIMULATION}/world.test.ts`, 'behaves identically', 901, 40, 40),
  // With the crash points of `log`, these are more than 200,000.
  ...seeds('crash', `${SIMULATION}/crash.test.ts`, 'recovers from', 10_001, 150, 30),
  ...seeds('backlog', `${SIMULATION}/backlog.test.ts`, 'recovers from', 1, 60, 10),
  once('defects-routed', `${SIMULATION}/routed.test.ts`, 'found'),
  ...seeds('routed', `${SIMULATION}/routed.test.ts`, 'keeps its promises', 1, 200, 20),
  ...seeds('clock', `${SIMULATION}/clock.test.ts`, 'delivers nothing early', 5_001, 1_000, 200),
  ...seeds('replay', `${SIMULATION}/replay.test.ts`, 'exactly once', 1, 1_000, 200),
  ...seeds('reference', 'test/reference/reference.test.ts', 'histories', 1, 1_000, 100),
  once('defects-reference-streams', 'test/reference/streams.test.ts', 'found'),
  ...seeds('reference-streams', 'test/reference/streams.test.ts', 'histories of streams', 1, 400, 50),
  ...Array.from({ length: 20 }, (_, i) => ({
    name: `atomic-${i + 1}`,
    env: { SLUICE_SEED: String(i + 1) },
    file: `${SIMULATION}/atomic.test.ts`,
  })),
  once('full-disk', `${SIMULATION}/full-disk.test.ts`),
  ...times('kill', 5, 'test/fault/kill.test.ts'),
  ...times('group-kill', 3, 'test/fault/group-kill.test.ts'),
  ...times('stop', 5, 'test/fault/stop.test.ts'),
  ...times('eio', 5, 'test/fault/eio.test.ts'),
  ...times('sigterm', 4, 'test/fault/sigterm.test.ts'),
  once('drained-disk', 'test/fault/disk-full.test.ts'),
  ...['payloads through', 'atomic steps', 'mutated streams', 'records and batches', 'random bytes'].map(
    (only) => once(`fuzz-${only.replace(' ', '-')}`, 'test/conformance/fuzz.test.ts', only),
  ),
  once('fuzz-pieces', 'test/conformance/stream.test.ts', 'in many pieces'),
  ...seeds('log', 'packages/server/src/log/crash.test.ts', 'a power cut at any step', 1, 1_000, 200),
  ...seeds('log-creation', 'packages/server/src/log/crash.test.ts', 'the creation of a log', 1, 200, 200),
  once('log-flips', 'packages/server/src/log/damage.test.ts', 'a flipped bit'),
  once('queue-model', `${QUEUE}/model.test.ts`),
  ...['ids', 'bits', 'columns', 'schedule', 'arrivals', 'time-queue', 'batches'].map((name) =>
    once(`queue-${name}`, `${QUEUE}/${name}.test.ts`),
  ),
  once('options', 'packages/server/src/state/traits.test.ts'),
  once('names', 'packages/server/src/state/name-cache.test.ts'),
  ...seeds('schedules', 'packages/server/src/broker/schedule-year.test.ts', 'fires each tick', 1, 200, 100),
  once('schedules-many', 'packages/server/src/broker/schedule-year.test.ts', 'has room for'),
  once('many-queues', 'packages/server/src/state/many-queues.test.ts'),
  once('origin', 'packages/server/src/broker/origin.test.ts'),
  ...seeds('readers', 'packages/server/src/broker/readers-model.test.ts', 'agree with the model', 1, 500, 50),
  once('record', 'packages/protocol/src/record.test.ts'),
  once('client-fifo', 'packages/client/src/fifo.test.ts'),
  once('client-number-ring', 'packages/client/src/number-ring.test.ts'),
  once('client-lines', 'packages/client/src/lines.test.ts'),
  once('control', 'packages/protocol/src/control.test.ts'),
]

/** The arguments of npx. */
export function argumentsOf({ file, only }: Part): string[] {
  return ['vitest', 'run', file, ...(only === undefined ? [] : ['-t', only])]
}

/** The part as a shell command. */
export function commandOf(part: Part): string {
  const env = Object.entries({ SLUICE_LONG: '1', ...part.env }).map(([name, value]) => `${name}=${value}`)
  const args = argumentsOf(part).map((arg) => (/^[\w./-]+$/.test(arg) ? arg : `'${arg}'`))
  return [...env, 'npx', ...args].join(' ')
}
