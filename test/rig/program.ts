/**
 * The programs that a demo starts: processes that write to a log file and may report over IPC. `Processes` lists those
 * that run and kills them by process id at the end. A process that ends before `mayEnd` is set fails the run.
 */
import { fork, spawn, type ChildProcess } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { environment } from './process.js'

export const BROKER_PROGRAM = new URL('./cli/main.js', import.meta.resolve('@sluice/server'))

export class Process {
  readonly child: ChildProcess
  /** Resolves after the process has ended and all its reports were read. */
  readonly ended: Promise<void>
  /** Whether the process may end without failing the run. */
  mayEnd = false

  constructor(child: ChildProcess) {
    this.child = child
    this.ended = new Promise((resolve) => {
      child.once('close', () => resolve())
      child.once('error', () => resolve())
    })
  }

  /** Sends a message over IPC. A process that has ended is ignored, because its end is reported elsewhere. */
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

  constructor(failed: (error: Error) => void) {
    this.#failed = failed
  }

  /** Starts a program whose output is appended to the file `log`. */
  start(name: string, program: URL, args: readonly string[], log: string): Process {
    const file = openSync(log, 'a')
    try {
      const child = spawn(process.execPath, [fileURLToPath(program), ...args], {
        env: environment(),
        stdio: ['ignore', file, file],
      })
      return this.#watch(name, child)
    } finally {
      closeSync(file)
    }
  }

  /** Like `start`, for a program that reports over IPC. */
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
        env: environment(),
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
    // Not 'exit', which may precede the last report.
    child.once('close', (code, signal) => {
      if (process.mayEnd && (code === 0 || signal === 'SIGKILL')) return
      this.#failed(new Error(`A process ended unexpectedly, with ${signal ?? `exit code ${code}`}: ${name}.`))
    })
    void process.ended.then(() => this.#running.delete(process))
    return process
  }

  async killAll(): Promise<void> {
    await Promise.all([...this.#running].map((process) => process.kill()))
  }
}
