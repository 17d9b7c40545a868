/**
 * Runs a demo: owns its directory, its processes, its time limit and the handling of Ctrl-C.
 *
 * A demo leaves no processes behind, however it ends. It removes its directory, except after a failure: then the
 * directory with the logs is kept, and its path is printed.
 */
import { constants } from 'node:os'
import { Processes } from '../rig/program.js'
import { scratchDirectory } from '../rig/scratch.js'

/** The resources of a demo. */
export interface Stage {
  /** Directory for the broker's data and all logs. */
  readonly directory: string
  readonly processes: Processes
  /** Aborted when the run has ended. */
  readonly signal: AbortSignal
  /** Ends the run with this error. */
  readonly fail: (error: unknown) => void
}

export interface Play {
  /** Runs the play. Resolves with the problems that it found, as sentences. */
  play(): Promise<string[]>
  /** Describes the progress, for the message about the time limit. */
  whereabouts(): string
  /** Restores the terminal before other output is written. */
  clear(): void
  /** Releases the resources of the play, after success or failure. */
  close(): Promise<void>
}

class Interrupted extends Error {
  readonly exitCode: number

  constructor(signal: 'SIGINT' | 'SIGTERM' | 'SIGHUP') {
    super(`interrupted by ${signal}`)
    this.exitCode = 128 + constants.signals[signal]
  }
}

/** Resolves with the exit code: 0 for success, 1 for failure, 128 plus the signal number after an interrupt. */
export async function perform(name: string, runMsMax: number, cast: (stage: Stage) => Play): Promise<number> {
  const scratch = await scratchDirectory(name)
  const directory = scratch.path
  const end = new AbortController()
  const fail = (error: unknown): void => end.abort(error)
  const failed = new Promise<never>((_, reject) => {
    end.signal.addEventListener('abort', () => reject(end.signal.reason as Error))
  })
  failed.catch(() => {})
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => fail(new Interrupted(signal)))
  }
  // An uncaught error must not end this process before its child processes.
  process.on('uncaughtException', fail)
  const processes = new Processes(fail)
  const play = cast({ directory, processes, signal: end.signal, fail })
  const overdue = setTimeout(() => {
    fail(new Error(`Not done after ${runMsMax / 1000} s: ${play.whereabouts()}.`))
  }, runMsMax)
  let keep = true
  try {
    const problems = await Promise.race([play.play(), failed])
    play.clear()
    for (const problem of problems) console.error(problem)
    keep = problems.length > 0
    return keep ? 1 : 0
  } catch (error) {
    play.clear()
    if (error instanceof Interrupted) {
      keep = false
      return error.exitCode
    }
    console.error(`The demo failed. ${error instanceof Error ? error.message : String(error)}`)
    return 1
  } finally {
    clearTimeout(overdue)
    end.abort()
    await play.close()
    await processes.killAll()
    if (keep) console.error(`The logs of the broker and its clients are in ${directory}.`)
    else await scratch.dispose()
  }
}
