/**
 * The checker judges what clients saw. It is one pure function over the events that producers and consumers recorded. It
 * shares no code with a broker; the simulation and the tests with real processes both use it.
 *
 * Events are in the order in which they happened, as far as that is known; the order of one client's events is always
 * known. A producer names each message, and a name is used only once in a history.
 */

/**
 * The result of an operation for its caller. Without an answer the result is `unknown`: the operation may or may not
 * have taken effect.
 */
export type OperationOutcome = 'ok' | 'fail' | 'unknown'

/** A producer started to publish a message. */
export interface AttemptEvent {
  readonly kind: 'attempt'
  readonly queue: string
  readonly message: string
  readonly producer: string
  /** The body, as a string or digest; compared with deliveries that have a body. */
  readonly body?: string
  /**
   * A number that increases with each message that one producer sends to one queue. Omit it if the order of sending is
   * unknown or not kept.
   */
  readonly sequence?: number
  /**
   * The group of messages within which this one is in order, for example messages of one key and priority. All messages
   * of one queue without a lane are one group. If the lane is null, the message has no order, because it has its own
   * due time.
   */
  readonly lane?: string | null
}

/**
 * The answer to an attempt. An attempt without an answer has an unknown outcome. If it has several answers, the last one
 * other than `unknown` counts. `duplicate`: another message has the same id, so this message must not be delivered.
 */
export interface OutcomeEvent {
  readonly kind: 'outcome'
  readonly message: string
  readonly outcome: OperationOutcome | 'duplicate'
  /** Offset at which the message was accepted. */
  readonly offset?: number
}

/** A consumer received a message. */
export interface DeliverEvent {
  readonly kind: 'deliver'
  readonly queue: string
  readonly message: string
  /** A receiver whose deliveries are ordered: a subscription, or a client that reconnects. */
  readonly consumer: string
  readonly redelivered: boolean
  readonly offset?: number
  readonly body?: string
}

/** A consumer settled a message that it held. `fail`: the answer was that its lease was lost. */
export interface SettleEvent {
  readonly kind: 'settle'
  readonly queue: string
  readonly message: string
  readonly consumer: string
  readonly action: 'ack' | 'retry' | 'release' | 'deadLetter'
  readonly outcome: OperationOutcome
}

/** A purge or delete of a queue, or an attempt at one: messages whose publish started earlier may be gone. */
export interface RemoveEvent {
  readonly kind: 'remove'
  readonly queue: string
  readonly outcome: OperationOutcome
}

/** According to the broker's own record, the message left its queue: it expired, or was dropped, cancelled or moved. */
export interface GoneEvent {
  readonly kind: 'gone'
  readonly queue: string
  readonly message: string
  readonly why: string
}

/**
 * The contents of a queue at the end, after all faults have ended and the queue was drained: the number of messages
 * that are left, and the number of dead messages.
 */
export interface EndEvent {
  readonly kind: 'end'
  readonly queue: string
  readonly left: number
  readonly dead: number
}

export type HistoryEvent =
  | AttemptEvent
  | OutcomeEvent
  | DeliverEvent
  | SettleEvent
  | RemoveEvent
  | GoneEvent
  | EndEvent

/**
 * `lost`: confirmed, but neither delivered nor removed by the end of a full drain; or delivered, never finished, and
 * gone. `recovered`: of unknown outcome, and delivered; this is allowed. `unexpected`: delivered although it was never
 * attempted on that queue, was refused, is a duplicate, has another body, or was already acknowledged. `duplicated`:
 * delivered again without the redelivered mark, or accepted twice. `reordered`: among the first deliveries of a lane to
 * one consumer, a later message came before an earlier one. `stuck`: the queue was not empty at the end.
 */
export const VERDICTS = ['lost', 'recovered', 'unexpected', 'duplicated', 'reordered', 'stuck'] as const
export type Verdict = (typeof VERDICTS)[number]

export interface Finding {
  readonly verdict: Verdict
  readonly queue: string
  /** The message, or the queue if the finding does not concern a single message. */
  readonly subject: string
  readonly why: string
}

export interface Report {
  readonly findings: readonly Finding[]
  readonly counts: Readonly<Record<Verdict, number>>
  /** Counts of what was checked. */
  readonly attempted: number
  readonly confirmed: number
  readonly refused: number
  readonly unknown: number
  readonly duplicates: number
  /** Number of messages that left according to the broker's own record. */
  readonly gone: number
  /** Number of deliveries, and number of different messages that were delivered. */
  readonly deliveries: number
  readonly delivered: number
  readonly settles: number
  readonly queues: number
}

export interface CheckOptions {
  /**
   * Whether the events of different consumers are in their true order too. If so, any delivery after a confirmed ack is
   * unexpected. If not, such a delivery is unexpected only if it goes to the consumer that sent the ack, because the
   * process of another consumer may read an old delivery late.
   */
  readonly totalOrder?: boolean
}

interface Message {
  readonly name: string
  readonly attempt: AttemptEvent
  outcome: OperationOutcome | 'duplicate'
  offset: number | undefined
  /** Whether a purge or delete came after the attempt, or the message left according to the broker's own record. */
  mayBeRemoved: boolean
  isGone: boolean
  deliveries: number
  unmarked: number
  readonly consumers: Set<string>
  /** Whether an ack or a dead-letter took effect, or may have taken effect. */
  finished: boolean
  deadLettered: boolean
  /** The consumer whose ack was confirmed. */
  ackedBy: string | undefined
}

interface QueueView {
  readonly name: string
  readonly messages: Message[]
  settles: number
  end: EndEvent | undefined
}

/** The first deliveries of one lane to one consumer: their highest offset, and their highest sequence of each producer. */
interface Line {
  offset: number
  readonly sequences: Map<string, number>
}

/** Judges a history. The function is pure: the same events give the same report. */
export function checkHistory(events: readonly HistoryEvent[], options: CheckOptions = {}): Report {
  const findings: Finding[] = []
  const find = (verdict: Verdict, queue: string, subject: string, why: string): void => {
    findings.push({ verdict, queue, subject, why })
  }
  const messages = new Map<string, Message>()
  const queues = new Map<string, QueueView>()
  const lines = new Map<string, Line>()
  let deliveries = 0
  let settles = 0

  const queueOf = (name: string): QueueView => {
    let queue = queues.get(name)
    if (queue === undefined) {
      queue = { name, messages: [], settles: 0, end: undefined }
      queues.set(name, queue)
    }
    return queue
  }

  const deliver = (event: DeliverEvent): void => {
    deliveries++
    const { queue, consumer } = event
    const message = messages.get(event.message)
    if (message === undefined) {
      find('unexpected', queue, event.message, 'it was delivered but never attempted')
      return
    }
    const { attempt } = message
    if (attempt.queue !== queue) {
      find('unexpected', queue, message.name, `it was published to ${attempt.queue}`)
      return
    }
    if (event.body !== undefined && attempt.body !== undefined && event.body !== attempt.body) {
      find('unexpected', queue, message.name, 'its body is not the published one')
    }
    if (message.ackedBy !== undefined && (options.totalOrder === true || message.ackedBy === consumer)) {
      find(
        'unexpected',
        queue,
        message.name,
        `it was delivered after its ack by ${message.ackedBy} was confirmed`,
      )
    }
    if (event.offset !== undefined) {
      if (message.offset !== undefined && message.offset !== event.offset) {
        find(
          'duplicated',
          queue,
          message.name,
          `it is at offset ${message.offset} and at offset ${event.offset}`,
        )
      }
      message.offset ??= event.offset
    }
    if (!event.redelivered) {
      if (message.unmarked > 0) {
        find('duplicated', queue, message.name, 'two of its deliveries have no redelivered mark')
      } else if (message.consumers.has(consumer) || (options.totalOrder === true && message.deliveries > 0)) {
        find('duplicated', queue, message.name, 'it was delivered again without the redelivered mark')
      } else {
        order(event, attempt)
      }
      message.unmarked++
    }
    message.deliveries++
    message.consumers.add(consumer)
  }

  const order = (event: DeliverEvent, attempt: AttemptEvent): void => {
    if (attempt.lane === null) return
    const key = JSON.stringify([event.queue, event.consumer, attempt.lane])
    let line = lines.get(key)
    if (line === undefined) {
      line = { offset: -1, sequences: new Map() }
      lines.set(key, line)
    }
    const latest = line.sequences.get(attempt.producer) ?? -Infinity
    if (event.offset !== undefined && event.offset <= line.offset) {
      find(
        'reordered',
        event.queue,
        event.message,
        `${event.consumer} received offset ${event.offset} after ${line.offset}`,
      )
    } else if (attempt.sequence !== undefined && attempt.sequence <= latest) {
      find(
        'reordered',
        event.queue,
        event.message,
        `${event.consumer} received message ${attempt.sequence} of ${attempt.producer} after its message ${latest}`,
      )
    }
    line.offset = Math.max(line.offset, event.offset ?? -1)
    if (attempt.sequence !== undefined)
      line.sequences.set(attempt.producer, Math.max(latest, attempt.sequence))
  }

  const settle = (event: SettleEvent): void => {
    settles++
    queueOf(event.queue).settles++
    const message = messages.get(event.message)
    if (message === undefined || event.outcome === 'fail') return
    if (event.action === 'ack' || event.action === 'deadLetter') message.finished = true
    if (event.action === 'deadLetter') message.deadLettered = true
    if (event.action === 'ack' && event.outcome === 'ok') message.ackedBy = event.consumer
  }

  for (const event of events) {
    switch (event.kind) {
      case 'attempt': {
        if (messages.has(event.message)) throw new Error(`the history names message ${event.message} twice`)
        const message: Message = {
          name: event.message,
          attempt: event,
          outcome: 'unknown',
          offset: undefined,
          mayBeRemoved: false,
          isGone: false,
          deliveries: 0,
          unmarked: 0,
          consumers: new Set(),
          finished: false,
          deadLettered: false,
          ackedBy: undefined,
        }
        messages.set(event.message, message)
        queueOf(event.queue).messages.push(message)
        break
      }
      case 'outcome': {
        const message = messages.get(event.message)
        if (message === undefined)
          throw new Error(`the history has an outcome but no attempt of message ${event.message}`)
        if (event.offset !== undefined) {
          if (message.offset !== undefined && message.offset !== event.offset) {
            const { queue } = message.attempt
            find(
              'duplicated',
              queue,
              message.name,
              `it is at offset ${message.offset} and at offset ${event.offset}`,
            )
          }
          message.offset ??= event.offset
        }
        // An attempt has one final result. "unknown" is not a result and does not replace a result.
        if (event.outcome !== 'unknown') message.outcome = event.outcome
        break
      }
      case 'deliver':
        deliver(event)
        break
      case 'settle':
        settle(event)
        break
      case 'remove':
        if (event.outcome !== 'fail')
          for (const message of queueOf(event.queue).messages) message.mayBeRemoved = true
        break
      case 'gone': {
        const message = messages.get(event.message)
        if (message === undefined)
          find('unexpected', event.queue, event.message, `it is gone (${event.why}) but was never attempted`)
        else {
          if (message.outcome === 'fail' || message.outcome === 'duplicate')
            find('unexpected', event.queue, event.message, `it is gone (${event.why}) but was never accepted`)
          message.mayBeRemoved = true
          message.isGone = true
        }
        break
      }
      case 'end':
        queueOf(event.queue).end = event
        break
    }
  }

  for (const queue of queues.values()) judgeQueue(queue, find)

  const all = [...messages.values()]
  const counts = Object.fromEntries(
    VERDICTS.map((verdict) => [verdict, findings.filter((finding) => finding.verdict === verdict).length]),
  ) as Record<Verdict, number>
  return {
    findings,
    counts,
    attempted: all.length,
    confirmed: all.filter(({ outcome }) => outcome === 'ok').length,
    refused: all.filter(({ outcome }) => outcome === 'fail').length,
    unknown: all.filter(({ outcome }) => outcome === 'unknown').length,
    duplicates: all.filter(({ outcome }) => outcome === 'duplicate').length,
    gone: all.filter(({ isGone }) => isGone).length,
    deliveries,
    delivered: all.filter((message) => message.deliveries > 0).length,
    settles,
    queues: queues.size,
  }
}

/** All findings that are violations: those with any verdict except `recovered`. */
export function violations(report: Report): readonly Finding[] {
  return report.findings.filter(({ verdict }) => verdict !== 'recovered')
}

/** The first findings, one per line, for a failure message. */
export function findingLines(findings: readonly Finding[], most = 10): string {
  const lines = findings
    .slice(0, most)
    .map(({ verdict, queue, subject, why }) => `${verdict} ${queue} ${subject}: ${why}`)
  if (findings.length > most) lines.push(`and ${findings.length - most} more`)
  return lines.join('\n')
}

function judgeQueue(
  queue: QueueView,
  find: (verdict: Verdict, queue: string, subject: string, why: string) => void,
): void {
  const { name, end, messages } = queue
  for (const message of messages) {
    if (message.deliveries === 0) continue
    if (message.outcome === 'fail') find('unexpected', name, message.name, 'it was refused but delivered')
    if (message.outcome === 'duplicate')
      find('unexpected', name, message.name, 'it is a duplicate but was delivered')
    if (message.outcome === 'unknown')
      find('recovered', name, message.name, 'its producer did not learn that it was accepted')
  }
  if (end === undefined) {
    if (messages.length > 0) find('stuck', name, name, 'it was never drained')
    return
  }
  if (end.left > 0) {
    find('stuck', name, name, `${end.left} messages are left after healing`)
    return
  }
  for (const message of messages) {
    if (message.outcome === 'ok' && message.deliveries === 0 && !message.mayBeRemoved) {
      find('lost', name, message.name, 'it was confirmed and is gone')
    }
  }
  // A message that was delivered and not finished must be delivered again or be dead. Which ones are dead is unknown, so
  // only their number is compared.
  if (queue.settles === 0) return
  const unfinished = messages.filter(
    (message) => message.deliveries > 0 && !message.finished && !message.mayBeRemoved,
  )
  if (unfinished.length > end.dead) {
    for (const message of unfinished) {
      find(
        'lost',
        name,
        message.name,
        `it was delivered, not finished, and is gone; only ${end.dead} are dead`,
      )
    }
  }
}
