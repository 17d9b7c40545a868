/**
 * The CPU time of a broker at full load: a profile of its event loop by part, and the time of its other threads.
 *
 * node test/dist/load/cpu.js
 */
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { freePort, scratchDirectory } from '../rig/scratch.js'
import { cpuMs } from '../scale/proc.js'
import { whole } from '../scale/scenario.js'
import { outputOf } from '../rig/server.js'
import { PROGRAM, serve } from './drivers/sluice.js'

/** Parts of the broker, recognised by the path of the code; the first match counts. */
const PARTS: readonly (readonly [part: string, fits: (name: string, path: string) => boolean])[] = [
  ['idle', (name) => name === '(idle)'],
  ['GC', (name) => name === '(garbage collector)'],
  ['checksums', (name) => name.startsWith('crc32')],
  ['kernel: sockets', (name) => /^(writeBuffer|writev|writeUtf8String|shutdown|readStart)$/.test(name)],
  ['kernel: files', (name, path) => path === '' && /^(fdatasync|read|write|open|close|fstat)/.test(name)],
  ['parse: frames and batches', (_, path) => /protocol\/dist\/(frame|batch|record|bytes|ranges)/.test(path)],
  ['encode: answers and deliveries', (_, path) => /session\/(outbox|deliveries)|protocol\/dist/.test(path)],
  ['session', (_, path) => /\/(session|net)\//.test(path)],
  ['queue', (_, path) => /\/queue\//.test(path)],
  ['log', (_, path) => /\/log\//.test(path)],
  ['broker', (_, path) => /packages\/server\/dist\//.test(path)],
  ['node: streams, timers, promises', (_, path) => path.startsWith('node:')],
  ['engine', () => true],
]

interface Profile {
  readonly nodes: readonly {
    readonly id: number
    readonly callFrame: { readonly functionName: string; readonly url: string }
  }[]
  readonly samples: readonly number[]
  readonly timeDeltas: readonly number[]
}

function partsOf(profile: Profile): Map<string, number> {
  const partOf = new Map(
    profile.nodes.map(({ id, callFrame: { functionName, url } }) => [
      id,
      PARTS.find(([, fits]) => fits(functionName, url))![0],
    ]),
  )
  const times = new Map<string, number>(PARTS.map(([part]) => [part, 0]))
  profile.samples.forEach((id, index) => {
    const part = partOf.get(id)!
    times.set(part, times.get(part)! + profile.timeDeltas[index]!)
  })
  return times
}

interface ThreadTimes {
  readonly main: { readonly user: number; readonly system: number }
  readonly others: { readonly user: number; readonly system: number }
}

/** CPU time of the process's threads so far, in seconds. */
function threadsOf(pid: number): ThreadTimes {
  const times = { main: { user: 0, system: 0 }, others: { user: 0, system: 0 } }
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const { user, system } = cpuMs(pid, thread)
    const sum = Number(thread) === pid ? times.main : times.others
    sum.user += user / 1_000
    sum.system += system / 1_000
  }
  return times
}

async function main(): Promise<void> {
  const directory = await scratchDirectory('cpu')
  try {
    for (const what of ['publish', 'consume'] as const) {
      const profiles = join(directory.path, `profile-${what}`)
      const port = await freePort()
      const flags = ['--cpu-prof', `--cpu-prof-dir=${profiles}`]
      const server = await serve(join(directory.path, what), port, flags)
      let rate: number
      let cpu: ThreadTimes
      try {
        const url = `sluice://127.0.0.1:${port}`
        const load =
          what === 'publish'
            ? ['--consumers', '0', '--duration', '8s', '--warmup', '1s']
            : ['--producers', '0', '--messages', '4000000']
        const told = await outputOf(process.execPath, PROGRAM, 'bench', '--url', url, '--json', ...load)
        if (told === undefined) throw new Error('sluice bench failed')
        const result = JSON.parse(told) as Record<typeof what, { readonly perSecond: number }>
        rate = result[what].perSecond
        cpu = threadsOf(server.pid)
      } finally {
        await server.stop()
      }
      const file = readdirSync(profiles).find((name) => name.endsWith('.cpuprofile'))!
      const times = partsOf(JSON.parse(readFileSync(join(profiles, file), 'utf8')) as Profile)
      let busy = 0
      for (const [part, us] of times) if (part !== 'idle') busy += us
      const all = busy + times.get('idle')!
      process.stdout.write(`\n${what}: ${whole(rate)} a second\n`)
      process.stdout.write(`event loop busy ${((100 * busy) / all).toFixed(0)} % of its time; of that\n`)
      for (const [part, us] of times)
        if (part !== 'idle')
          process.stdout.write(`  ${((100 * us) / busy).toFixed(1).padStart(5)} %  ${part}\n`)
      const { main: loop, others } = cpu
      process.stdout.write(
        `CPU seconds: event loop ${loop.user.toFixed(1)} in user code and ${loop.system.toFixed(1)} in the kernel, ` +
          `other threads (disk, GC, compiler) ${others.user.toFixed(1)} and ${others.system.toFixed(1)}\n`,
      )
    }
  } finally {
    await directory.dispose()
  }
}

await main()
