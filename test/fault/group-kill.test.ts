/** Members of groups that are killed, and a broker that is killed, lose and reorder nothing; see group-kill.ts. */
import { expect, test } from 'vitest'
import { runs } from '../amount.js'
import { complaints, killGroups, summary } from './group-kill.js'

const KILLS = Number(process.env['SLUICE_KILLS'] ?? runs(2, 30))
const SEED = Number(process.env['SLUICE_SEED'] ?? Date.now() % 1_000_000)

test(
  `the groups of a broker that is killed ${KILLS} times get every message in the order of its key`,
  async () => {
    const result = await killGroups({
      kills: KILLS,
      seed: SEED,
      members: runs(0, 1) === 1 ? [1, 3, 7] : [1, 2],
      meanLifeMs: runs(100, 500),
      meanStayMs: runs(200, 400),
    })
    console.log(summary(result))
    expect(complaints(result)).toBe('')
    const { groups, changes } = result
    for (const { report } of groups) {
      expect(report.confirmed).toBeGreaterThan(KILLS * 10)
      expect(report.delivered).toBeGreaterThanOrEqual(report.confirmed)
    }
    expect(changes.left + changes.killed).toBeGreaterThan(0)
  },
  60_000 + KILLS * 5_000,
)
