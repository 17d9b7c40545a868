/**
 * The frame around a demo: its directory, its processes, its bound in time, and Ctrl-C.
 *
 * Whatever ends the demo, no process and no file is left behind; after a failure the directory with the logs is kept,
 * and named.
 */
import { constants } from 'node:os'
import { Processes } from '../rig/program.js'
import { scratchDirectory } from '../rig/scratch.js'

/** What a demo has to play with. */
export interface Stage {
  /** For the broker's data and all logs. */
  readonly directory: string
  readonly processes: Processes
  /** Aborted when the run is over. */
  readonly signal: AbortSignal
  /** Ends the run. */
  readonly fail: (error: unknown) => void
}

export interface Play {
  /** Resolves with what went wrong, in sentences; none when all is well. */
  play(): Promise<string[]>
  /** How far it came, for the message that it took too long. */
  whereabouts(): string
  /** Leaves the terminal as it should be, before anything else is written. */
  clear(): void
  /** Lets go of what it holds itself, whatever became of the run. */
  close(): Promise<void>
}

class Interrupted extends Error {
  readonly exitCode: number

  constructor(signal: 'SIGINT' | 'SIGTERM' | 'SIGHUP') {
    super(`interrupted by ${signal}`)
    this.exitCode = 128 + constants.signals[signal]
  }
}

/** Resolves with the exit code: 0 when all went well, 1 when not, 128 and more when it was interrupted. */
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
  // Also what nobody waits for any more must not end this process before the others.
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
