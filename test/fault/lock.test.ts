/**
 * Two brokers never serve one directory on one machine, whatever their host names are and however the first one ended.
 * Tests with separate host names and network namespaces, as in containers, need root; without root they are skipped.
 */
import { spawnSync } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { BrokerProcess } from '../rig/broker.js'
import type { SpawnOptions } from '../rig/process.js'
import { scratchDirectory } from '../rig/scratch.js'

const isLinux = process.platform === 'linux'
const canUnshare = isLinux && spawnSync('unshare', ['-u', '-n', 'true']).status === 0
if (!canUnshare)
  console.warn(
    'SKIPPED: tests with separate host names and network namespaces, which need `unshare` and root.',
  )

let scratch: Awaited<ReturnType<typeof scratchDirectory>>
const brokers: BrokerProcess[] = []

beforeEach(async () => {
  scratch = await scratchDirectory('lock')
})

afterEach(async () => {
  for (const broker of brokers.splice(0)) await broker.dispose()
  await scratch.dispose()
})

function start(spawning: SpawnOptions = {}): BrokerProcess {
  const options = { dataDir: scratch.path, port: 0, segmentBytes: 8 << 20, lowFreeBytes: 0 }
  const broker = new BrokerProcess(options, spawning)
  brokers.push(broker)
  return broker
}

/** The command prefix that gives a process a separate host name, and optionally a separate network. */
function named(name: string, ...namespaces: string[]): SpawnOptions {
  return { under: ['unshare', '-u', ...namespaces, 'sh', '-c', `hostname ${name}; exec "$0" "$@"`] }
}

async function expectRefused(broker: BrokerProcess): Promise<void> {
  expect(await broker.exited).toEqual({ code: 1, signal: null })
  expect(broker.lines.join('\n')).toContain('DATA_DIR_LOCKED')
}

describe.runIf(isLinux)('two processes and one directory', () => {
  test('the second process is refused while the first one runs or is suspended, and gets the directory after the first one is killed', async () => {
    const first = start()
    await first.ready()
    const second = start()
    await expectRefused(second)
    expect(second.lines.join('\n')).toContain(`process id ${first.pid}`)
    first.signal('SIGSTOP')
    await expectRefused(start())
    first.signal('SIGCONT')
    first.signal('SIGKILL')
    await first.exited
    await start().ready()
  })

  test('if several processes start at once after a kill, exactly one gets the directory', async () => {
    for (let round = 0; round < 3; round++) {
      const dead = start()
      await dead.ready()
      dead.signal('SIGKILL')
      await dead.exited
      const crew = Array.from({ length: 4 }, () => start())
      const ends = await Promise.all(
        crew.map((broker) =>
          broker.ready().then(
            () => 'ready',
            () => 'refused',
          ),
        ),
      )
      expect(ends.filter((end) => end === 'ready')).toHaveLength(1)
      for (const [index, end] of ends.entries()) if (end === 'refused') await expectRefused(crew[index]!)
      const owner = crew[ends.indexOf('ready')]!
      owner.signal('SIGTERM')
      expect(await owner.exited).toEqual({ code: 0, signal: null })
    }
  })

  test('the process id in an abandoned lock file can now belong to any process', async () => {
    const dead = start()
    await dead.ready()
    dead.signal('SIGKILL')
    await dead.exited
    const file = join(scratch.path, 'lock')
    const left = JSON.parse(await readFile(file, 'utf8')) as object
    await writeFile(file, JSON.stringify({ ...left, pid: process.pid }))
    const next = start()
    await next.ready()
    expect(JSON.parse(await readFile(file, 'utf8'))).toMatchObject({ pid: next.pid })
  })
})

describe.runIf(canUnshare)('containers with separate host names', () => {
  test('the second container is refused, even from another network namespace', async () => {
    const first = start(named('one'))
    await first.ready()
    await expectRefused(start(named('two')))
    const third = start(named('three', '-n'))
    await expectRefused(third)
    expect(third.lines.join('\n')).toContain('on host one')
  })

  test('after a container is killed, the next one gets its directory', async () => {
    for (const name of ['one', 'two', 'three']) {
      const broker = start(named(name))
      await broker.ready()
      expect(JSON.parse(await readFile(join(scratch.path, 'lock'), 'utf8'))).toMatchObject({ host: name })
      broker.signal('SIGKILL')
      await broker.exited
    }
  })
})
