/** The parent's side of load processes, and the reader of their histories. */
import { createReadStream } from 'node:fs'
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

/** The events of all files in the order of the monotonic clock; events of one process keep their order. */
export async function readHistories(paths: readonly string[]): Promise<TimedEvent[]> {
  const events: TimedEvent[] = []
  for (const path of paths) {
    for await (const line of createInterface({ input: createReadStream(path) })) {
      if (line !== '') events.push(JSON.parse(line) as TimedEvent)
    }
  }
  return events.sort((a, b) => a.atUs - b.atUs)
}
