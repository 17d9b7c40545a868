/** A process that runs a built script of the tests. Tests signal it by its process id and end it with `dispose`. */
import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

// Processes run the files that `tsc -b` has built, even if this file itself runs from its source in a test.
const HERE = dirname(fileURLToPath(import.meta.url))
const BUILT = HERE.endsWith(join('dist', 'rig')) ? dirname(HERE) : join(HERE, '..', 'dist')

/** The built file of a script; `script` is its path in test/ without an extension. */
export function scriptPath(script: string): string {
  const path = join(BUILT, `${script}.js`)
  if (!existsSync(path)) throw new Error(`${path} is missing. Build it with \`npx tsc -b\`.`)
  return path
}

/** The environment for a process, without the SLUICE_ settings of the user who runs the tests. */
export function environment(more: Readonly<Record<string, string>> = {}): Record<string, string> {
  const own = Object.entries(process.env).filter(([name]) => !name.startsWith('SLUICE_'))
  return { ...(Object.fromEntries(own) as Record<string, string>), ...more }
}

export interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

export interface SpawnOptions {
  /** Command and arguments that run the Node process, such as those of strace. */
  readonly under?: readonly string[]
  readonly env?: Readonly<Record<string, string>>
  /** Whether to open an IPC channel. This is not possible with `under`. */
  readonly ipc?: boolean
}

/** A Node process that runs a script with one JSON argument. */
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
      // 'close' comes after the last line has been read.
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

  /**
   * The first line that `find` accepts, among the lines so far and all later lines. Rejects when the process ends
   * without one.
   */
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

  /** Kills the process in any state and waits for its end. */
  async dispose(): Promise<void> {
    if (this.#exit === undefined) {
      this.child.kill('SIGCONT')
      this.child.kill('SIGKILL')
    }
    await this.exited
  }
}
