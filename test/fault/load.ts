/** The parent's side of load processes, and the reader of their histories. */
import { closeSync, createReadStream, openSync } from 'node:fs'
import { createInterface } from 'node:readline'
import type { LoadArguments, Progress, TimedEvent } from './load-process.js'
import { ScriptProcess, type Exit } from '../rig/process.js'

const NOTHING: Progress = {
  is: 'progress',
  attempted: 0,
  confirmed: 0,
  refused: 0,
  unknown: 0,
  unresolved: 0,
  delivered: 0,
  settled: 0,
  failures: {},
}

export class LoadProcess extends ScriptProcess {
  progress: Progress = NOTHING
  readonly history: string

  constructor(load: LoadArguments) {
    super('fault/load-process', load, { ipc: true })
    this.history = load.history
    // A process can be killed before it opens its file.
    closeSync(openSync(load.history, 'a', 0o600))
    this.child.on('message', (message) => {
      this.progress = message as Progress
    })
  }

  /** Makes the process acknowledge everything from now on, including the cold queue. */
  drain(): void {
    this.child.send('drain')
  }

  /** Makes the process start nothing new, wait for the answers and end. */
  async stop(): Promise<Exit> {
    if (this.exit === undefined && this.child.connected) this.child.send('stop')
    return this.exited
  }
}

/** The sums of several counts by name. */
export function added(counts: readonly Readonly<Record<string, number>>[]): Record<string, number> {
  const total: Record<string, number> = {}
  for (const one of counts)
    for (const [name, count] of Object.entries(one)) total[name] = (total[name] ?? 0) + count
  return total
}

/**
 * The events of all files in the order of the monotonic clock; events of one process keep their order. The last line of
 * a process that was killed can lack its end.
 */
export async function readHistories(paths: readonly string[]): Promise<TimedEvent[]> {
  const events: TimedEvent[] = []
  for (const path of paths) {
    let cut: string | undefined
    for await (const line of createInterface({ input: createReadStream(path) })) {
      if (cut !== undefined) throw new Error(`${path} has a damaged line: ${cut}`)
      if (line === '') continue
      if (line.endsWith('}')) events.push(JSON.parse(line) as TimedEvent)
      else cut = line
    }
  }
  return events.sort((a, b) => a.atUs - b.atUs)
}
