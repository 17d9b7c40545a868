/**
 * Starting, watching and ending the processes of a fault test. Everything started is known by its process id and ends
 * with `dispose`; nothing is found by name.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { DiskReport } from '@sluice/server'
import type { BrokerArguments, BrokerLine } from './broker-process.js'

// Processes run what `tsc -b` has built, whether this file runs as TypeScript in a test or built as a script.
const HERE = dirname(fileURLToPath(import.meta.url))
const BUILT = HERE.endsWith(join('dist', 'fault')) ? HERE : join(HERE, '..', 'dist', 'fault')

/** The built script of this name in this folder. */
export function scriptPath(name: string): string {
  const path = join(BUILT, `${name}.js`)
  if (!existsSync(path)) throw new Error(`${path} is not there; build with \`npx tsc -b\` first`)
  return path
}

export interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

export interface SpawnOptions {
  /** Command and arguments that run the node process, such as those of strace. */
  readonly under?: readonly string[]
  readonly env?: Readonly<Record<string, string>>
  /** Messages between the processes. Not with `under`. */
  readonly ipc?: boolean
}

/** A node process that runs one of the scripts here with one JSON argument. */
export class ScriptProcess {
  readonly child: ChildProcess
  readonly exited: Promise<Exit>
  readonly lines: string[] = []
  stderr = ''
  #exit: Exit | undefined
  readonly #lineWaiters = new Set<() => void>()

  constructor(script: string, argument: object, options: SpawnOptions = {}) {
    const command = [...(options.under ?? []), process.execPath, scriptPath(script), JSON.stringify(argument)]
    this.child = spawn(command[0]!, command.slice(1), {
      env: { ...process.env, NODE_OPTIONS: '', ...options.env },
      stdio: ['pipe', 'pipe', 'pipe', ...(options.ipc === true ? ['ipc' as const] : [])],
    })
    this.exited = new Promise((resolve) => {
      const done = (exit: Exit): void => {
        this.#exit = exit
        resolve(exit)
        this.#tell()
      }
      // 'close' comes after the last line was read.
      this.child.once('close', (code, signal) => done({ code, signal }))
      this.child.once('error', (error) => {
        this.stderr += String(error)
        done({ code: -1, signal: null })
      })
    })
    createInterface({ input: this.child.stdout! }).on('line', (line) => {
      this.lines.push(line)
      this.#tell()
    })
    this.child.stderr!.on('data', (chunk: Buffer) => {
      this.stderr = (this.stderr + chunk.toString()).slice(-20_000)
    })
  }

  get pid(): number {
    return this.child.pid!
  }

  get exit(): Exit | undefined {
    return this.#exit
  }

  signal(signal: NodeJS.Signals): void {
    if (this.#exit === undefined) this.child.kill(signal)
  }

  /** The first line that `find` accepts, now or later. Rejects when the process ends without one. */
  async line<T>(find: (line: string) => T | undefined): Promise<T> {
    for (let at = 0; ;) {
      while (at < this.lines.length) {
        const found = find(this.lines[at++]!)
        if (found !== undefined) return found
      }
      if (this.#exit !== undefined) {
        throw new Error(
          `the process ended with ${JSON.stringify(this.#exit)}: ${this.lines.slice(-5).join(' ')} ${this.stderr}`,
        )
      }
      await new Promise<void>((resolve) => this.#lineWaiters.add(resolve))
    }
  }

  #tell(): void {
    const waiters = [...this.#lineWaiters]
    this.#lineWaiters.clear()
    for (const resolve of waiters) resolve()
  }

  /** Ends it, whatever it is doing, and waits until it is gone. */
  async dispose(): Promise<void> {
    if (this.#exit === undefined) {
      this.child.kill('SIGCONT')
      this.child.kill('SIGKILL')
    }
    await this.exited
  }
}

/** A broker process. */
export class BrokerProcess extends ScriptProcess {
  readonly spawnedMs = performance.now()
  /** Milliseconds from its spawning until it accepted connections. */
  readyMs = 0

  constructor(options: BrokerArguments, spawning: SpawnOptions = {}) {
    super('broker-process', options, spawning)
  }

  /** It is about to read its log. */
  beginning(): Promise<void> {
    return this.line((text) => (parse(text).is === 'beginning' ? true : undefined)).then(() => undefined)
  }

  /** It accepts connections. */
  async ready(): Promise<Extract<BrokerLine, { is: 'ready' }>> {
    const ready = await this.line((text) => {
      const line = parse(text)
      return line.is === 'ready' ? line : undefined
    })
    if (this.readyMs === 0) this.readyMs = performance.now() - this.spawnedMs
    return ready
  }

  /** What it says of its disk now. */
  disk(): Promise<DiskReport> {
    const told = (): DiskReport[] =>
      this.lines.map(parse).flatMap((line) => (line.is === 'disk' ? [line.disk] : []))
    const before = told().length
    process.kill(this.pid, 'SIGUSR2')
    return until('the broker to tell of its disk', () => told()[before])
  }

  get events(): Extract<BrokerLine, { is: 'event' }>[] {
    return this.lines.map(parse).filter((line) => line.is === 'event')
  }
}

function parse(text: string): BrokerLine {
  return JSON.parse(text) as BrokerLine
}

/** A new directory of the test's own; `dispose` removes it. */
export async function scratchDirectory(
  name: string,
): Promise<{ path: string; dispose: () => Promise<void> }> {
  const path = await mkdtemp(join(tmpdir(), `sluice-${name}-`))
  return { path, dispose: () => rm(path, { recursive: true, force: true }) }
}

/** A port of the loopback interface that was free a moment ago, for a broker that has to come back on it. */
export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, '127.0.0.1', resolve)
  })
  const address = server.address()
  await new Promise<void>((resolve) => {
    server.close(() => resolve())
  })
  if (address === null || typeof address === 'string') throw new Error('the system gave no port')
  return address.port
}

/** Numbers of the first and the last segment file in a data directory. */
export async function segmentNumbers(dataDir: string): Promise<{ first: number; last: number }> {
  const names = await readdir(dataDir).catch(() => [])
  const numbers = names
    .filter((name) => /^\d{20}\.segment$/.test(name))
    .map((name) => Number(name.slice(0, 20)))
  return { first: Math.min(...numbers), last: Math.max(...numbers) }
}

/** Polls until the condition gives something other than false, undefined or null. Rejects with what it waited for. */
export async function until<T>(
  what: string,
  condition: () => T | Promise<T>,
  timeoutMs = 20_000,
): Promise<Exclude<T, false | undefined | null>> {
  const untilMs = performance.now() + timeoutMs
  for (;;) {
    const value = await condition()
    if (value !== false && value !== undefined && value !== null)
      return value as Exclude<T, false | undefined | null>
    if (performance.now() > untilMs) throw new Error(`after ${timeoutMs} ms still waiting for: ${what}`)
    await delay(10)
  }
}

export function delay(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
}
