import { expect, test } from 'vitest'
import { Turn } from './turn.js'

class Rig {
  nowMs = 1_000
  ends = 0
  readonly deferred: (() => void)[] = []
  readonly turn = new Turn({ now: () => this.nowMs, defer: (end) => this.deferred.push(end) }, this.nowMs)

  constructor() {
    const sink = { note: () => {} }
    this.turn.connect({ writer: sink, moves: sink, holds: sink, due: () => {}, end: () => this.#end() })
  }

  #end(): void {
    if (this.turn.beginEnd()) this.ends++
  }

  /** Ends the turns that are due, and returns the number of ended turns. */
  endTurns(): number {
    const before = this.ends
    for (const end of this.deferred.splice(0)) end()
    return this.ends - before
  }
}

test('a turn that is woken several times ends once, and so does the next turn', () => {
  const rig = new Rig()
  expect(rig.endTurns()).toBe(0)
  rig.turn.wake()
  rig.turn.wake()
  expect(rig.endTurns()).toBe(1)
  rig.turn.wake()
  expect(rig.endTurns()).toBe(1)
})

test('the time of a turn never goes back', () => {
  const rig = new Rig()
  rig.nowMs = 2_000
  rig.turn.begin()
  expect(rig.turn.nowMs).toBe(2_000)
  rig.nowMs = 1_500
  rig.turn.begin()
  expect(rig.turn.nowMs).toBe(2_000)
})

test('a timer runs once at its deadline, and is then disarmed', () => {
  const rig = new Rig()
  const { turn } = rig
  const timer = turn.timer()
  expect(turn.nextDeadline).toBe(Infinity)
  turn.arm(timer, 1_500)
  expect(turn.nextDeadline).toBe(1_500)
  rig.nowMs = 1_499
  turn.tick()
  expect(turn.nextDeadline).toBe(1_500)
  rig.nowMs = 1_500
  turn.tick()
  expect(turn.nextDeadline).toBe(Infinity)
  expect(rig.endTurns()).toBe(1)
})

test('after `stop` no turn ends, not even a turn that is due, and no waiting request continues', () => {
  const rig = new Rig()
  const { turn } = rig
  turn.wake()
  turn.stop()
  expect(rig.endTurns()).toBe(0)
  turn.wake()
  expect(rig.deferred.length).toBe(0)
  expect(() => turn.beginAgain()).toThrow('The broker is stopping.')
})
