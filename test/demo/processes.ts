/**
 * The processes that a demo starts. Each that is running is in the list, and whoever ends the demo ends them all, by
 * process id. One that ends without having been told to is a failure of the run.
 */
import { fork, spawn, type ChildProcess } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'

export const BROKER_PROGRAM = new URL('./cli/main.js', import.meta.resolve('@sluice/server'))

export class Process {
  readonly child: ChildProcess
  /** It has ended and everything that it reported has been read. */
  readonly ended: Promise<void>
  /** Its end is no failure. */
  mayEnd = false

  constructor(child: ChildProcess) {
    this.child = child
    this.ended = new Promise((resolve) => {
      child.once('close', () => resolve())
      child.once('error', () => resolve())
    })
  }

  /** Over the IPC channel. A process that is gone already is told of by its end. */
  send(message: object): void {
    this.child.send(message, () => {})
  }

  kill(): Promise<void> {
    this.mayEnd = true
    this.child.kill('SIGKILL')
    return this.ended
  }
}

export class Processes {
  readonly #running = new Set<Process>()
  readonly #failed: (error: Error) => void
  // What the user has set for brokers and clients of their own is not for these.
  readonly #env = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !name.startsWith('SLUICE_')),
  )

  constructor(failed: (error: Error) => void) {
    this.#failed = failed
  }

  /** A program with what it writes going to `log`. */
  start(name: string, program: URL, args: readonly string[], log: string): Process {
    const file = openSync(log, 'a')
    try {
      const child = spawn(process.execPath, [fileURLToPath(program), ...args], {
        env: this.#env,
        stdio: ['ignore', file, file],
      })
      return this.#watch(name, child)
    } finally {
      closeSync(file)
    }
  }

  /** A program that reports over an IPC channel, with what it writes going to `log`. */
  startReporting(
    name: string,
    program: URL,
    args: readonly string[],
    log: string,
    reported: (report: unknown) => void,
  ): Process {
    const file = openSync(log, 'a')
    try {
      const child = fork(program, args, {
        env: this.#env,
        execArgv: [],
        stdio: ['ignore', file, file, 'ipc'],
      })
      child.on('message', reported)
      return this.#watch(name, child)
    } finally {
      closeSync(file)
    }
  }

  #watch(name: string, child: ChildProcess): Process {
    const process = new Process(child)
    this.#running.add(process)
    child.once('error', (error) => this.#failed(new Error(`A process failed: ${name}: ${error.message}`)))
    // Not 'exit': reports can still be unread then.
    child.once('close', (code, signal) => {
      if (process.mayEnd && (code === 0 || signal === 'SIGKILL')) return
      this.#failed(new Error(`A process ended by itself, with ${signal ?? `exit code ${code}`}: ${name}.`))
    })
    void process.ended.then(() => this.#running.delete(process))
    return process
  }

  async killAll(): Promise<void> {
    await Promise.all([...this.#running].map((process) => process.kill()))
  }
}

/** A TCP port of this machine that is free now. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as AddressInfo
      server.close(() => resolve(port))
    })
  })
}
