import { expect, it } from 'vitest'
import { FactBuffer, REFER_BYTES, readFacts, referOf, type Refer } from './facts.js'

it.each([
  [true, '00'],
  [false, '01'],
])('a refer fact has the layout that the document describes, counted: %s', (isCounted, death) => {
  const refer: Refer = {
    queueId: 0xf1f2_f3f4,
    offset: 0x0001_0203_0405_0607,
    count: 0x0400,
    index: 0xfffe,
    isCounted,
  }
  const facts = new FactBuffer()
  facts.refer(refer)
  expect(Buffer.from(facts.bytes).toString('hex')).toBe(
    ['17', death, '0000', '00040000', '0706050403020100', 'f4f3f2f1feff0000'].join(''),
  )
  expect(facts.length).toBe(REFER_BYTES)
  const found: Refer[] = []
  readFacts(facts.bytes, 0, facts.length, (fact) => found.push(referOf(fact)))
  expect(found).toEqual([refer])
})
