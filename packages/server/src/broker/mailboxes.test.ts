/**
 * Mailboxes against a model: random clients that ask, reply, stop reading, lose their connections and come back. Each reply
 * must reach the request that it answers, once. Planted mistakes show that the comparison would find a reply that goes
 * astray.
 */
import { REPLY_FATE, readU32, writeU32 } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench } from '../testing/bench.js'
import type { Mailbox, Mailboxes, MailboxOwner } from './mailboxes.js'

const MINUTE = 60_000

function answer(request: number, bytes = 12): Uint8Array {
  const payload = new Uint8Array(bytes)
  writeU32(payload, 0, request)
  writeU32(payload, 8, request)
  return payload
}

class Owner implements MailboxOwner {
  takesReplies = true
  readonly got: number[] = []
  /** Number of replies whose body answers another request. */
  wrong = 0
  mailbox: Mailbox | undefined

  answer(bytes: Uint8Array, start: number): void {
    const request = readU32(bytes, start)
    if (readU32(bytes, start + 8) !== request) this.wrong++
    this.got.push(request)
  }
}

async function opened(): Promise<{ bench: Bench; mailboxes: Mailboxes }> {
  const bench = await new Bench().open()
  // After this time, a mailbox that is not known is gone.
  await bench.pass(MINUTE)
  return { bench, mailboxes: bench.broker.mailboxes }
}

const send = (mailboxes: Mailboxes, name: string, request: number, bytes?: number): number => {
  const payload = answer(request, bytes)
  return mailboxes.reply(name, payload, 0, payload.length)
}

describe('a reply', () => {
  it('goes to the owner of its mailbox at once, in order', async () => {
    const { mailboxes } = await opened()
    const [one, other] = [new Owner(), new Owner()]
    mailboxes.open('a', one)
    mailboxes.open('b', other)
    for (const request of [3, 1, 2]) expect(send(mailboxes, 'a', request)).toBe(REPLY_FATE.delivered)
    expect(send(mailboxes, 'b', 9)).toBe(REPLY_FATE.delivered)
    expect([one.got, other.got]).toEqual([[3, 1, 2], [9]])
    mailboxes.invariants()
  })

  it('to an unknown mailbox is dropped and counted', async () => {
    const { mailboxes } = await opened()
    expect(send(mailboxes, 'a', 1)).toBe(REPLY_FATE.gone)
    expect(mailboxes.dropped).toBe(1)
  })

  it('to a client that has left is dropped', async () => {
    const { mailboxes } = await opened()
    const owner = new Owner()
    mailboxes.close(mailboxes.open('a', owner), owner, true)
    expect(send(mailboxes, 'a', 1)).toBe(REPLY_FATE.gone)
    mailboxes.invariants()
  })

  it('is kept for a minute while the client is away', async () => {
    const { bench, mailboxes } = await opened()
    const [first, second, third] = [new Owner(), new Owner(), new Owner()]
    mailboxes.close(mailboxes.open('a', first), first, false)
    expect(send(mailboxes, 'a', 1)).toBe(REPLY_FATE.kept)
    await bench.pass(MINUTE - 1)
    expect(send(mailboxes, 'a', 2)).toBe(REPLY_FATE.kept)
    mailboxes.close(mailboxes.open('a', second), second, false)
    expect([first.got, second.got]).toEqual([[], [1, 2]])
    expect(send(mailboxes, 'a', 3)).toBe(REPLY_FATE.kept)
    await bench.pass(MINUTE)
    expect(send(mailboxes, 'a', 4)).toBe(REPLY_FATE.gone)
    mailboxes.open('a', third)
    expect(third.got).toEqual([])
    expect(mailboxes.dropped).toBe(2)
    expect(mailboxes.keptBytes).toBe(0)
    mailboxes.invariants()
  })

  it('is kept for an unknown mailbox right after a start', async () => {
    const bench = await new Bench().open()
    const { mailboxes } = bench.broker
    expect(send(mailboxes, 'a', 1)).toBe(REPLY_FATE.kept)
    const owner = new Owner()
    mailboxes.open('a', owner)
    expect(owner.got).toEqual([1])
    await bench.pass(MINUTE)
    expect(send(mailboxes, 'b', 1)).toBe(REPLY_FATE.gone)
  })

  it('goes to the newest connection of a client', async () => {
    const { mailboxes } = await opened()
    const [lost, next] = [new Owner(), new Owner()]
    const mailbox = mailboxes.open('a', lost)
    mailboxes.open('a', next)
    mailboxes.close(mailbox, lost, false)
    expect(send(mailboxes, 'a', 1)).toBe(REPLY_FATE.delivered)
    expect(next.got).toEqual([1])
    mailboxes.invariants()
  })

  it('is kept, up to a number and a size, while the client does not read', async () => {
    const { mailboxes } = await opened()
    const owner = new Owner()
    const mailbox = mailboxes.open('a', owner)
    owner.takesReplies = false
    for (let request = 0; request < 1_024; request++)
      expect(send(mailboxes, 'a', request)).toBe(REPLY_FATE.kept)
    expect(send(mailboxes, 'a', 1_024)).toBe(REPLY_FATE.dropped)
    owner.takesReplies = true
    mailboxes.resume(mailbox)
    expect(owner.got).toEqual(Array.from({ length: 1_024 }, (_, request) => request))
    owner.takesReplies = false
    for (let request = 0; request < 4; request++)
      expect(send(mailboxes, 'a', request, 1 << 20)).toBe(REPLY_FATE.kept)
    expect(send(mailboxes, 'a', 5)).toBe(REPLY_FATE.dropped)
    expect(mailboxes.keptBytes).toBe(4 << 20)
    expect(mailboxes.dropped).toBe(2)
    mailboxes.invariants()
  })

  it('is dropped when too much is kept for all clients together', async () => {
    const { mailboxes } = await opened()
    for (let client = 0; client < 17; client++) {
      const owner = new Owner()
      owner.takesReplies = false
      mailboxes.open(String(client), owner)
      for (let request = 0; request < 4; request++)
        expect(send(mailboxes, String(client), request, 1 << 20)).toBe(
          client < 16 ? REPLY_FATE.kept : REPLY_FATE.dropped,
        )
    }
    mailboxes.invariants()
  })

  it('is dropped with the mailbox that is away longest when too many are away', async () => {
    const { mailboxes } = await opened()
    const owner = new Owner()
    for (let client = 0; client <= 10_000; client++)
      mailboxes.close(mailboxes.open(String(client), owner), owner, false)
    expect(send(mailboxes, '0', 1)).toBe(REPLY_FATE.gone)
    expect(send(mailboxes, '1', 1)).toBe(REPLY_FATE.kept)
    mailboxes.invariants()
  })
})

/** Runs one random history, and returns the first thing that is wrong; undefined if nothing is. */
async function history(seed: number, plant: (mailboxes: Mailboxes) => void): Promise<string | undefined> {
  let state = seed * 2_654_435_761
  const random = (below: number): number => {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b_3c6d) + 0x9e37_79b9) >>> 0
    return (state >>> 8) % below
  }
  const { bench, mailboxes } = await opened()
  plant(mailboxes)
  const names = ['a', 'b', 'c']
  const owners = new Map<string, Owner>()
  const expected = new Map(names.map((name) => [name, [] as number[]]))
  const got = new Map(names.map((name) => [name, [] as number[]]))
  let request = 0
  const wrong = (): string | undefined => {
    for (const [name, owner] of owners) {
      got.get(name)!.push(...owner.got.splice(0))
      if (owner.wrong > 0) return `a reply of ${name} answers another request`
    }
    for (const name of names) {
      const [all, seen] = [expected.get(name)!, got.get(name)!]
      if (seen.length > all.length || seen.some((one, index) => one !== all[index]))
        return `${name} got ${seen.join(' ')}, expected ${all.join(' ')}`
    }
    return undefined
  }
  for (let step = 0; step < 200; step++) {
    const name = names[random(names.length)]!
    const owner = owners.get(name)
    const kind = random(10)
    if (kind < 6) {
      const fate = send(mailboxes, name, ++request)
      if (fate === REPLY_FATE.delivered || fate === REPLY_FATE.kept) expected.get(name)!.push(request)
      if ((fate === REPLY_FATE.gone) !== (owner === undefined && !mailboxes.has(name)))
        return `the fate of a reply to ${name} is ${fate}`
    } else if (kind === 6 && owner !== undefined) {
      owner.takesReplies = !owner.takesReplies
      if (owner.takesReplies) mailboxes.resume(owner.mailbox!)
    } else if (kind === 7 && owner !== undefined) {
      mailboxes.close(owner.mailbox!, owner, false)
      got.get(name)!.push(...owner.got.splice(0))
      owners.delete(name)
    } else if (kind === 8 && owner === undefined) {
      const next = new Owner()
      owners.set(name, next)
      next.mailbox = mailboxes.open(name, next)
    } else await bench.pass(random(50))
    mailboxes.invariants()
    const found = wrong()
    if (found !== undefined) return found
  }
  for (const name of names) {
    const next = owners.get(name) ?? new Owner()
    owners.set(name, next)
    next.takesReplies = true
    mailboxes.resume(mailboxes.open(name, next))
  }
  const found = wrong()
  if (found !== undefined) return found
  for (const name of names)
    if (got.get(name)!.length !== expected.get(name)!.length)
      return `${name} got ${got.get(name)!.length} replies, expected ${expected.get(name)!.length}`
  return undefined
}

const SEEDS = Array.from({ length: 30 }, (_, index) => index + 1)

describe('random clients', () => {
  it('get each reply once, and with the request that it answers', async () => {
    for (const seed of SEEDS) expect(await history(seed, () => {}), `seed ${seed}`).toBeUndefined()
  })

  /** Changes the replies that were kept when the client reconnects. */
  const onReconnect =
    (change: (kept: Uint8Array[]) => void) =>
    (mailboxes: Mailboxes): void => {
      const open = mailboxes.open.bind(mailboxes)
      mailboxes.open = (name, owner) => {
        const kept: Uint8Array[] = []
        const collector: MailboxOwner = {
          takesReplies: true,
          answer: (bytes, start, end) => void kept.push(bytes.slice(start, end)),
        }
        if (owner.takesReplies) {
          open(name, collector)
          change(kept)
          for (const reply of kept) owner.answer(reply, 0, reply.length)
        }
        return open(name, owner)
      }
    }

  it.each([
    [
      'the replies that were kept get the numbers of other requests',
      onReconnect((kept) => {
        const first = kept[0]
        const last = kept.at(-1)
        if (first === undefined || last === undefined) return
        const number = readU32(first, 0)
        writeU32(first, 0, readU32(last, 0))
        writeU32(last, 0, number)
      }),
    ],
    ['a reply that was kept is sent twice', onReconnect((kept) => void kept.push(...kept.slice(0, 1)))],
    ['a reply that was kept is lost', onReconnect((kept) => void kept.pop())],
  ])('would show that %s', async (_, plant) => {
    const found: string[] = []
    for (const seed of SEEDS) {
      const difference = await history(seed, plant)
      if (difference !== undefined) found.push(difference)
    }
    expect(found.length).toBeGreaterThan(0)
  })
})
