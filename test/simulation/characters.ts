/**
 * The options of a run's queues and messages. Some options of a queue are fixed for each queue name, so that their
 * effects can be predicted exactly; the others change from time to time.
 */
import type { QueueOptions, RecordOptions } from '@sluice/protocol'
import type { Chance } from './chance.js'

export interface Character {
  readonly name: string
  readonly fixed: Partial<QueueOptions>
  /** Shares of messages with a key, an id, a priority, a delay and a time to live, in this order. */
  readonly keyed: number
  readonly identified: number
  readonly prioritized: number
  readonly delayed: number
  readonly mortal: number
  /** Possible dead-letter queues. */
  readonly deadLetters: readonly string[]
  /** Whether the messages of the queue have no options, so that only retries happen. */
  readonly isPlain: boolean
}

/** Draws the options of a queue; `isPlain`: without any special option. */
export function characterOf(
  name: string,
  behind: readonly string[],
  isPlain: boolean,
  chance: Chance,
): Character {
  if (isPlain) {
    return {
      name,
      fixed: {},
      keyed: 0,
      identified: 0,
      prioritized: 0,
      delayed: 0,
      mortal: 0,
      deadLetters: [],
      isPlain,
    }
  }
  const share = (least: number): number => (chance.hit(0.4) ? 0 : least + chance.random() * (1 - least) * 0.7)
  const ids: Partial<QueueOptions> = chance.hit(0.4) ? { unique: 'pending' } : {}
  return {
    name,
    fixed: {
      ...ids,
      dedupMaxIds: chance.hit(0.7) ? 1_000_000 : chance.int(5, 60),
      maxBytes: chance.hit(0.8) ? 0 : chance.int(3_000, 20_000),
    },
    keyed: share(0.3),
    identified: share(0.2),
    prioritized: share(0.2),
    delayed: chance.hit(0.5) ? 0 : 0.15,
    mortal: chance.hit(0.5) ? 0 : 0.2,
    deadLetters: behind,
    isPlain,
  }
}

/** Draws the options of one ENSURE of the queue. */
export function optionsFor(
  { fixed, deadLetters, isPlain }: Character,
  chance: Chance,
): Partial<QueueOptions> {
  const options: { -readonly [Name in keyof QueueOptions]?: QueueOptions[Name] } = { ...fixed }
  // The window can change: an id that a shorter window has forgotten stays forgotten under a longer one.
  if (!isPlain && fixed.unique !== 'pending' && chance.hit(0.3))
    options.dedupWindowMs = chance.pick([0, 500, 3_000, 600_000])
  if (chance.hit(0.4)) return options
  options.maxDeliveries = chance.int(1, 5)
  options.retryInitialMs = chance.int(0, 300)
  options.retryMaxMs = options.retryInitialMs + chance.int(0, 2000)
  if (isPlain) return options
  if (chance.hit(0.4)) options.keyConcurrency = chance.pick([1, 1, 2, 3])
  if (chance.hit(0.3)) options.onFail = chance.pick(['block', 'skip'] as const)
  if (chance.hit(0.2)) options.ttlMs = chance.hit(0.5) ? 0 : 1 + chance.skewed(4_000)
  if (chance.hit(0.3)) options.processingTimeoutMs = chance.pick([100, 500, 3_000, 1_800_000])
  if (chance.hit(0.1)) options.single = chance.hit(0.5)
  if (chance.hit(0.3))
    options.deadLetter = chance.hit(0.7) && deadLetters.length > 0 ? chance.pick(deadLetters) : ''
  if (chance.hit(0.3)) {
    options.maxMessages = chance.hit(0.4) ? 0 : chance.int(3, 60)
    options.overflow =
      options.maxMessages === 0 && fixed.maxBytes === 0
        ? 'reject'
        : chance.pick(['reject', 'drop-oldest', 'dead-letter'] as const)
  }
  return options
}

/** Draws the options of one message; `nowMs` is the time of the broker's clock. */
export function recordOptionsFor(
  character: Character,
  chance: Chance,
  nowMs: number,
): RecordOptions | undefined {
  if (character.isPlain) return undefined
  const { keyed, identified, prioritized, delayed, mortal } = character
  const options: { -readonly [Name in keyof RecordOptions]: RecordOptions[Name] } = {}
  if (chance.hit(prioritized)) options.priority = chance.pick([0, 1, 1, 7, 31])
  if (chance.hit(delayed)) {
    if (chance.hit(0.7)) options.delayMs = chance.hit(0.2) ? 0 : chance.skewed(3_000)
    else options.atMs = nowMs + chance.int(-500, 2_000)
  }
  if (chance.hit(mortal)) options.ttlMs = 1 + chance.skewed(4_000)
  if (chance.hit(keyed)) options.key = `k${chance.skewed(6)}`
  if (chance.hit(identified)) {
    options.id = idFor(chance)
    if (chance.hit(0.3)) options.replaces = true
  }
  if (chance.hit(0.05))
    options.headers = { colour: chance.pick(['red', 'blue']), trace: `${chance.int(0, 9)}` }
  return options
}

/** Draws an id that other messages can have too. */
export function idFor(chance: Chance): string {
  return `i${chance.int(0, 80)}`
}

/** The lane of a message, in which order is kept: its key or its priority; null if the message has its own due time. */
export function laneOf(options: RecordOptions | undefined): string | null {
  if ((options?.delayMs ?? 0) > 0 || options?.atMs !== undefined) return null
  return options?.key === undefined ? `priority ${options?.priority ?? 0}` : `key ${options.key}`
}
