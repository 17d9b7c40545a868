/**
 * Crash points of a backlog world: at uses of the disk, one of the images that a loss of power or a kill could leave is
 * taken. A new broker recovers from the image and is compared with the log. See crash.ts for worlds with connections.
 */
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Log, LogBounds } from '../../packages/server/src/log/log.js'
import { drain, type Backlog } from './backlog.js'
import { Chance } from './chance.js'
import { otherLog } from './defects.js'
import type { SimulatedDisk } from './disk.js'
import { compareRecovered } from './recovery.js'
import { Violation } from './trace.js'

/** Counts of the images and of what was checked in them. */
export interface BacklogCounts {
  images: number
  withUnfinished: number
  torn: number
  fromCheckpoint: number
  messages: number
  /** Number of images with cold chunks, and of cold chunks in all images. */
  withCold: number
  coldChunks: number
  retained: number
  again: number
  interrupted: number
  /** Number of images that were drained. */
  drained: number
  drainedMessages: number
}

export function noBacklogCounts(): BacklogCounts {
  return {
    images: 0,
    withUnfinished: 0,
    torn: 0,
    fromCheckpoint: 0,
    messages: 0,
    withCold: 0,
    coldChunks: 0,
    retained: 0,
    again: 0,
    interrupted: 0,
    drained: 0,
    drainedMessages: 0,
  }
}

interface Recovered {
  readonly broker: Broker
  readonly log: Log
  readonly bounds: LogBounds
  readonly turns: (() => void)[]
}

const AGAIN_SHARE = 0.08
const INTERRUPTED_SHARE = 0.06
const DRAINED_SHARE = 0.02
/** Share of the images in which every message is recounted; in the others only the log is. */
const AUDIT_SHARE = 0.1

export class BacklogPoints {
  readonly counts: BacklogCounts
  readonly #chance: Chance
  readonly #share: number

  /** Checks this `share` of the disk uses. */
  constructor(seed: number, counts: BacklogCounts, share: number) {
    this.#chance = new Chance(seed ^ 0x0c4a_5e)
    this.counts = counts
    this.#share = share
  }

  async look(world: Backlog): Promise<void> {
    const chance = this.#chance
    if (!chance.hit(this.#share)) return
    const image = chance.hit(0.85) ? world.disk.crash(chance.random) : world.disk.kill(chance.random)
    try {
      await this.#check(world, image)
    } catch (error) {
      if (error instanceof Error) error.message += ` (in crash image ${this.counts.images} of this seed)`
      throw error
    }
  }

  async #check(world: Backlog, image: SimulatedDisk): Promise<void> {
    const { counts } = this
    const chance = this.#chance
    const interrupted = chance.hit(INTERRUPTED_SHARE)
      ? image.clone({ mode: 'queued', random: chance.random })
      : undefined
    counts.images++
    const recovered = await this.#recover(world, image)
    const { bounds, broker, turns } = recovered
    const state = world.ledger.allows(bounds.nextLsn - 1)
    if (bounds.nextLsn - 1 > world.ledger.durable.lsn) counts.withUnfinished++
    if (bounds.cutBytes > 0) counts.torn++
    if (bounds.checkpoint !== undefined) counts.fromCheckpoint++
    this.#compare(world, recovered, bounds.nextLsn - 1, !state.closed)
    if (broker.coldChunks() > 0) counts.withCold++
    if (interrupted !== undefined) await this.#interrupt(world, interrupted)
    if (chance.hit(AGAIN_SHARE)) {
      // Invariant 17: the recovery is complete and durable; recovering from that state gives the same state.
      counts.again++
      const again = await this.#recover(world, image.crash(chance.random))
      if (again.bounds.nextLsn !== bounds.nextLsn + 1)
        throw new Violation(17, `after recovery the log ends with entry ${again.bounds.nextLsn - 1}`)
      this.#compare(world, again, bounds.nextLsn - 1, true)
    }
    if (chance.hit(DRAINED_SHARE)) {
      counts.drained++
      counts.drainedMessages += await drain(broker, state, () => restOf(turns))
    }
  }

  /** Compares the broker with the state after entry `lsn`. */
  #compare(world: Backlog, { broker, log }: Recovered, lsn: number, afterCrash: boolean): void {
    const state = world.ledger.allows(lsn)
    const compared = compareRecovered(broker, log, state, afterCrash, world.nowMs, () => Infinity)
    if (this.#chance.hit(AUDIT_SHARE)) broker.audit()
    else broker.auditUse()
    this.counts.messages += compared.messages
    this.counts.coldChunks += compared.coldChunks
    this.counts.retained += compared.retained
  }

  /** Invariant 17: the recovery itself crashes at some point, and the next recovery loses nothing. */
  async #interrupt(world: Backlog, disk: SimulatedDisk): Promise<void> {
    const chance = this.#chance
    this.counts.interrupted++
    const opening = this.#begin(world, disk)
    let reported: LogBounds | undefined
    void opening.bounds.then((bounds) => (reported = bounds))
    for (let steps = chance.skewed(60); steps > 0 && disk.queued > 0; steps--) {
      disk.step()
      await new Promise((resolve) => setImmediate(resolve))
    }
    const recovered = await this.#recover(world, disk.crash(chance.random))
    const last = recovered.bounds.nextLsn - 1
    const { ledger } = world
    const base = reported === undefined ? Math.min(last, ledger.written.lsn) : reported.nextLsn - 1
    if (last < base || last > base + 1)
      throw new Violation(17, `recovery was interrupted after entry ${base}; the next one finds ${last}`)
    this.#compare(world, recovered, base, last > base || !ledger.allows(base).closed)
  }

  #begin(
    world: Backlog,
    disk: SimulatedDisk,
  ): {
    readonly broker: Promise<Broker>
    readonly log: Log
    readonly bounds: Promise<LogBounds>
    readonly turns: (() => void)[]
  } {
    let setBounds: (bounds: LogBounds) => void
    const bounds = new Promise<LogBounds>((resolve) => (setBounds = resolve))
    const turns: (() => void)[] = []
    const { broker, log } = world.open(disk, turns, (inner) =>
      otherLog(inner, {
        open: async () => {
          const found = await inner.open()
          setBounds(found)
          return found
        },
      }),
    )
    // The promise of an interrupted recovery never settles.
    broker.catch(() => {})
    return { broker, log, bounds, turns }
  }

  async #recover(world: Backlog, disk: SimulatedDisk): Promise<Recovered> {
    const { broker, log, bounds, turns } = this.#begin(world, disk)
    return { broker: await broker, log, bounds: await bounds, turns }
  }
}

async function restOf(turns: (() => void)[]): Promise<void> {
  for (let quiet = 0; quiet < 3;) {
    const turn = turns.shift()
    turn?.()
    await new Promise((resolve) => setImmediate(resolve))
    quiet = turn === undefined ? quiet + 1 : 0
  }
}
