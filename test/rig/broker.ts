/** A broker in a separate process, for tests that kill, stop or trace it. */
import type { DiskReport } from '@sluice/server'
import type { BrokerArguments, BrokerLine } from './broker-process.js'
import { ScriptProcess, type SpawnOptions } from './process.js'
import { until } from './wait.js'

export class BrokerProcess extends ScriptProcess {
  readonly spawnedMs = performance.now()
  /** Milliseconds from spawn to the first accepted connection. */
  readyMs = 0

  constructor(options: BrokerArguments, spawning: SpawnOptions = {}) {
    super('rig/broker-process', options, spawning)
  }

  /** Resolves before the broker reads its log. */
  beginning(): Promise<void> {
    return this.line((text) => (parse(text).is === 'beginning' ? true : undefined)).then(() => undefined)
  }

  /** Resolves once the broker accepts connections. */
  async ready(): Promise<Extract<BrokerLine, { is: 'ready' }>> {
    const ready = await this.line((text) => {
      const line = parse(text)
      return line.is === 'ready' ? line : undefined
    })
    if (this.readyMs === 0) this.readyMs = performance.now() - this.spawnedMs
    return ready
  }

  /** Asks the broker for the state of its disk. */
  disk(): Promise<DiskReport> {
    const reports = (): DiskReport[] =>
      this.lines.map(parse).flatMap((line) => (line.is === 'disk' ? [line.disk] : []))
    const before = reports().length
    process.kill(this.pid, 'SIGUSR2')
    return until('the broker to report its disk', () => reports()[before])
  }

  get events(): Extract<BrokerLine, { is: 'event' }>[] {
    return this.lines.map(parse).filter((line) => line.is === 'event')
  }
}

function parse(text: string): BrokerLine {
  return JSON.parse(text) as BrokerLine
}
